//! Tables as runc prints them.

/// Columns as wide as their widest cell, and runc's three blanks between them.
pub fn table<const N: usize>(head: [String; N], rows: &[[String; N]]) -> String {
    const GAP: usize = 3;
    let lines = || std::iter::once(&head).chain(rows);
    let widths: Vec<usize> = (0..N)
        .map(|c| lines().map(|l| l[c].chars().count()).max().unwrap_or(0) + GAP)
        .collect();
    let mut text = String::new();
    for line in lines() {
        for (cell, width) in line.iter().zip(&widths) {
            text.push_str(&format!("{cell:<width$}"));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let cells = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        let text = table(cells("ID", "PID"), &[cells("web", "7"), cells("a", "12")]);
        assert_eq!(text, "ID    PID\nweb   7\na     12\n");
    }
}
