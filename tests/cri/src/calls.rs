//! Calls of the interface, by the descriptors that ../build.rs has made of ../cri.proto: no call has code of its own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use http::uri::PathAndQuery;
use prost::Message as _;
use prost::bytes::{Buf, BufMut as _};
use prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions, Value,
};
use serde_json::Serializer;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cri.descriptors"));

/// A runtime that is connected to.
pub struct Runtime {
    channel: Channel,
    descriptors: DescriptorPool,
    limit: Duration,
}

/// What a call has answered.
pub struct Answer(DynamicMessage);

impl Runtime {
    /// Connects to the runtime at `socket`; each call may take `limit` seconds.
    pub async fn connect(socket: &Path, limit: u64) -> Result<Self> {
        let descriptors = DescriptorPool::decode(DESCRIPTORS).context("cri.proto's descriptors")?;
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))?
            .connect()
            .await
            .with_context(|| format!("no runtime at {}", socket.display()))?;
        Ok(Self {
            channel,
            descriptors,
            limit: Duration::from_secs(limit),
        })
    }

    /// Makes the call of this name. Fails as the runtime says: the status's name, and its message.
    pub async fn call(&self, name: &str, request: serde_json::Value) -> Result<Answer> {
        let method = self.method(name)?;
        let message = DynamicMessage::deserialize(method.input(), request)
            .with_context(|| format!("the request is no {}", method.input().name()))?;
        let path =
            PathAndQuery::try_from(format!("/{}/{name}", method.parent_service().full_name()))?;
        let mut request = Request::new(message);
        // The runtime is told of it, and gives up, too.
        request.set_timeout(self.limit);
        let mut client = Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        client.ready().await?;
        let answer = tokio::time::timeout(
            self.limit,
            client.unary(request, path, Messages(method.output())),
        )
        .await
        .with_context(|| format!("{name} has not answered in {:?}", self.limit))?
        .map_err(|status| anyhow!("{:?}: {}", status.code(), status.message()))?;
        Ok(Answer(answer.into_inner()))
    }

    /// Asks, by the call of this name, for the URL of streams.
    pub async fn url(&self, name: &str, request: serde_json::Value) -> Result<String> {
        Ok(crate::text_of(&self.call(name, request).await?.field("url")).to_owned())
    }

    fn method(&self, name: &str) -> Result<MethodDescriptor> {
        self.descriptors
            .services()
            .find_map(|service| service.methods().find(|method| method.name() == name))
            .with_context(|| format!("cri.proto has no call {name}"))
    }
}

impl Answer {
    /// A field's value, or the one that it has by default.
    pub fn field(&self, name: &str) -> Value {
        self.0
            .get_field_by_name(name)
            .map(|value| value.into_owned())
            .unwrap_or(Value::Bool(false))
    }

    /// All of it, with the names of cri.proto and numbers as numbers.
    pub fn to_json(&self) -> Result<String> {
        let options = SerializeOptions::new()
            .use_proto_field_name(true)
            .stringify_64_bit_integers(false)
            .skip_default_fields(false);
        let mut json = Vec::new();
        self.0
            .serialize_with_options(&mut Serializer::new(&mut json), &options)?;
        Ok(String::from_utf8(json)?)
    }
}

/// Encodes requests, and decodes answers as the message that it holds.
struct Messages(MessageDescriptor);

impl Codec for Messages {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(self.0.clone())
    }

    fn decoder(&mut self) -> Self {
        Self(self.0.clone())
    }
}

impl Encoder for Messages {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item.encode_to_vec());
        Ok(())
    }
}

impl Decoder for Messages {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        let message = DynamicMessage::decode(self.0.clone(), bytes);
        Ok(Some(message.map_err(|error| {
            Status::internal(format!("the answer is no {}: {error}", self.0.name()))
        })?))
    }
}
