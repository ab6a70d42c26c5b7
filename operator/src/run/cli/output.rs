//! Printing: aligned columns, JSON, YAML.

use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets};

/// Prints a value as JSON, indented.
pub(super) fn json<T: serde::Serialize>(out: &mut dyn Write, value: &T) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
    writeln!(out)
}

/// Prints rows in aligned columns. A heading that begins with `>` is aligned to the right, as numbers are.
pub(super) fn table(out: &mut dyn Write, headings: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
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

/// Prints all CustomResourceDefinitions, in the order of their names: the same bytes each time.
pub(super) fn crds(out: &mut dyn Write) -> anyhow::Result<()> {
    writeln!(out, "# Made by `vipline-operator crds`: do not edit.")?;
    for crd in operator_api::crds() {
        writeln!(out, "---")?;
        // By way of a JSON value: its keys are sorted.
        let value = serde_json::to_value(crd)?;
        let text = serde_norway::to_string(&value)?;
        out.write_all(text.as_bytes())?;
    }
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_printed_the_same_each_time_and_read_back() {
        let print = || {
            let mut out = Vec::new();
            crds(&mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let text = print();
        assert_eq!(text, print());
        let documents: Vec<&str> = text.split("---\n").skip(1).collect();
        let names: Vec<String> = documents
            .iter()
            .map(|document| {
                let value: serde_json::Value = serde_norway::from_str(document).unwrap();
                value["metadata"]["name"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(names.len(), operator_api::crds().len());
        assert!(names.is_sorted(), "{names:?}");
    }

    #[test]
    fn columns_align() {
        let mut out = Vec::new();
        let rows = vec![vec!["a".into(), "1".into()], vec!["bbbb".into(), "22222".into()]];
        table(&mut out, &["NAME", ">COUNT"], rows).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "NAME  COUNT\na         1\nbbbb  22222\n"
        );
    }
}
