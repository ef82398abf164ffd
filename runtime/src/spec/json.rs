//! JSON in which no object has a key twice.
//!
//! runc's reader makes one object of two `process` objects, others take the last; RFC 8259, section 4, leaves it
//! open. What an operator reads and what runs could be different things then, so hull refuses it.
//! `serde_json` has no such mode: its own `Value` takes the last.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Reads a text of JSON.
///
/// # Errors
/// Where it ceases to be JSON, or at the second of two keys: [`is_repeated_key`] tells these from the rest.
pub fn parse(text: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice(text).map(|Unambiguous(value)| value)
}

/// Whether an error of [`parse`] is about a key that is there twice, in what is JSON otherwise.
pub fn is_repeated_key(error: &serde_json::Error) -> bool {
    error.is_data()
}

/// A value in which no object has a key twice.
struct Unambiguous(Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ValueVisitor).map(Self)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(Unambiguous(element)) = from.next_element()? {
            elements.push(element);
        }
        Ok(elements.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = from.next_key::<String>()? {
            if fields.contains_key(&key) {
                return Err(Error::custom(format_args!("{key:?} is there twice")));
            }
            let Unambiguous(value) = from.next_value()?;
            fields.insert(key, value);
        }
        Ok(fields.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_that_is_there_twice_is_named_with_its_place() {
        for text in [
            r#"{"process": {}, "process": {}}"#,
            r#"{"mounts": [{"type": "bind", "type": "tmpfs"}]}"#,
            "{\"a\": 1,\n\"\\u0061\": 2}",
        ] {
            let error = parse(text.as_bytes()).expect_err(text);
            assert!(is_repeated_key(&error), "{error}");
            assert!(
                error.to_string().contains("is there twice at line"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_no_json_is_not_about_keys() {
        for text in ["", "{", "{]", "nul", r#"{"a": 1} x"#, "[1e999]"] {
            assert!(
                !is_repeated_key(&parse(text.as_bytes()).expect_err(text)),
                "{text}"
            );
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1e9..1e9).prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(".{0,3}", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn all_else_is_as_the_library_reads_it(value in any_value()) {
            let text = value.to_string();
            let theirs: Value = serde_json::from_str(&text).expect("JSON");
            prop_assert_eq!(parse(text.as_bytes()).expect("JSON"), theirs);
        }
    }
}
