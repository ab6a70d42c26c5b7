//! Printing: aligned columns and JSON.

use std::io;

use comfy_table::{CellAlignment, Table, presets};

/// Prints a value as JSON, indented.
pub(super) fn json<T: serde::Serialize>(out: &mut dyn io::Write, value: &T) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
    writeln!(out)
}

/// Prints rows in aligned columns. A heading that begins with `>` is aligned to the right, as numbers are.
pub(super) fn table(out: &mut dyn io::Write, headings: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(headings.iter().map(|heading| heading.trim_start_matches('>')));
    for row in rows {
        table.add_row(row);
    }
    for (index, heading) in headings.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if heading.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// A number of bytes for people: `1.5 GB`.
pub(super) fn bytes(count: f64) -> String {
    scaled(count, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// A number for people: `12.3 k`.
pub(super) fn number(count: f64) -> String {
    scaled(count, &["", "k", "M", "G", "T"])
}

fn scaled(count: f64, units: &[&str]) -> String {
    let mut value = count;
    let mut units = units.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    for next in units {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    let digits = usize::from(count >= 1000.0);
    format!("{value:.digits$} {unit}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::{bytes, number, table};

    #[test]
    fn numbers_are_short_and_keep_their_unit() {
        assert_eq!(bytes(0.0), "0 B");
        assert_eq!(bytes(999.0), "999 B");
        assert_eq!(bytes(1_500_000.0), "1.5 MB");
        assert_eq!(number(12_345.0), "12.3 k");
        assert_eq!(number(7.0), "7");
    }

    #[test]
    fn columns_align() {
        let mut out = Vec::new();
        table(
            &mut out,
            &["NAME", ">COUNT"],
            vec![vec!["a".into(), "1".into()], vec!["bbbb".into(), "22222".into()]],
        )
        .unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "NAME  COUNT\na         1\nbbbb  22222\n"
        );
    }
}
