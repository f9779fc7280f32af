//! Plain tables and numbers for people.

/// Columns of text; the first is aligned left, the others right.
#[derive(Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Table {
        Table { rows: vec![headings.iter().map(|h| h.to_string()).collect()] }
    }
    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |c: usize| self.rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (c, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[c] - cell.chars().count());
                line += &if c == 0 { format!("{cell}{pad}") } else { format!("  {pad}{cell}") };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A whole number with thousands separated: `3,564,976,800`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A count with a decimal prefix: `52.6B` for parameters with [`COUNT`], `1.2 GFLOP` style with [`SI`].
pub fn short(n: f64, prefixes: &[&str; 5]) -> String {
    let mut value = n;
    let mut index = 0;
    while value >= 999.5 && index + 1 < prefixes.len() {
        value /= 1000.0;
        index += 1;
    }
    let digits = if index == 0 || value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.digits$}{}", prefixes[index])
}

/// Prefixes of counts.
pub const COUNT: [&str; 5] = ["", "K", "M", "B", "T"];
/// Prefixes of units.
pub const SI: [&str; 5] = [" ", " k", " M", " G", " T"];

/// Bytes: `14.3 GB`.
pub fn bytes(n: usize) -> String {
    format!("{}B", short(n as f64, &SI))
}

/// Seconds: `1.24 ms`.
pub fn seconds(s: f64) -> String {
    match s {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} µs", s * 1e6),
    }
}

/// A share as a percentage: `93.1 %`.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(grouped(3_564_976_800), "3,564,976,800");
        assert_eq!(grouped(12), "12");
        assert_eq!(short(52_594_338_720.0, &COUNT), "52.6B");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(14_260_000_000), "14.3 GB");
        assert_eq!(seconds(0.00124), "1.24 ms");
        assert_eq!(percent(0.931), "93.1 %");
    }

    #[test]
    fn columns_align() {
        let mut table = Table::new(&["a", "bb"]);
        table.row(vec!["long".into(), "1".into()]);
        assert_eq!(table.to_string(), "a     bb\nlong   1\n");
    }
}
