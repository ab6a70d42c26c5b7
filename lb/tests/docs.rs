//! The documents say what the program says: every verdict and outcome is explained, and nothing that does not exist.

use std::{fs, path::PathBuf};

use lb::metrics::{MAX_BACKEND_SERIES, MAX_VIP_SERIES, METRICS, Shape};
use lb_core::slow::{End, Kind, Outcome};
use xdp_prog::verdict::{Fate, Verdict};

fn document(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The cells of the rows of the table under a heading, without code marks; its two heading rows left out.
fn rows(text: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, section) = text
        .split_once(heading)
        .unwrap_or_else(|| panic!("no heading {heading}"));
    let table = section
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'));
    let cells = |line: &str| {
        line.trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().replace('`', ""))
            .collect()
    };
    table.skip(2).map(cells).collect()
}

#[test]
fn the_packet_walk_has_every_verdict_in_order_with_its_fate_reason_and_meaning() {
    let rows = rows(&document("packet-walk.md"), "\n## Verdicts\n");
    let said: Vec<[&str; 4]> = rows
        .iter()
        .map(|row| [&*row[0], &*row[1], &*row[2], &*row[4]])
        .collect();
    let names: Vec<String> = Verdict::ALL.iter().map(|verdict| format!("{verdict:?}")).collect();
    let meant: Vec<[&str; 4]> = Verdict::ALL
        .iter()
        .zip(&names)
        .map(|(verdict, name)| [&**name, verdict.fate().name(), verdict.reason(), verdict.describe()])
        .collect();
    assert_eq!(said, meant);
}

#[test]
fn operations_says_what_to_do_about_every_packet_that_is_not_delivered() {
    let rows = rows(&document("operations.md"), "\n## Counters, and what to do\n");
    let said: Vec<&str> = rows.iter().map(|row| &*row[0]).collect();
    let lost = |verdict: &&Verdict| matches!(verdict.fate(), Fate::Slow | Fate::Drop);
    let meant: Vec<&str> = Verdict::ALL
        .iter()
        .filter(lost)
        .map(|verdict| verdict.reason())
        .collect();
    assert_eq!(said, meant);
    assert!(
        rows.iter().all(|row| row.len() == 3 && !row[2].is_empty()),
        "each with what to do"
    );
}

#[test]
fn the_packet_walk_has_every_outcome_in_order_with_its_end_reason_and_meaning() {
    let rows = rows(&document("packet-walk.md"), "\n## Outcomes\n");
    let said: Vec<[&str; 4]> = rows
        .iter()
        .map(|row| [&*row[0], &*row[1], &*row[2], &*row[3]])
        .collect();
    let names: Vec<String> = Outcome::ALL.iter().map(|outcome| format!("{outcome:?}")).collect();
    let meant: Vec<[&str; 4]> = Outcome::ALL
        .iter()
        .zip(&names)
        .map(|(outcome, name)| [&**name, outcome.end().name(), outcome.reason(), outcome.describe()])
        .collect();
    assert_eq!(said, meant);
}

#[test]
fn operations_says_what_to_do_about_every_packet_that_the_slow_path_drops() {
    let rows = rows(&document("operations.md"), "\n### The slow path's drops\n");
    let said: Vec<&str> = rows.iter().map(|row| &*row[0]).collect();
    let meant: Vec<&str> = Outcome::ALL
        .iter()
        .filter(|outcome| outcome.end() == End::Dropped)
        .map(|outcome| outcome.reason())
        .collect();
    assert_eq!(said, meant);
    assert!(
        rows.iter().all(|row| row.len() == 2 && !row[1].is_empty()),
        "each with what to do"
    );
}

#[test]
fn the_packet_walk_says_what_is_done_about_every_kind_of_work_and_for_which_verdicts() {
    let rows = rows(&document("packet-walk.md"), "\n### What is done, by kind\n");
    let said: Vec<&str> = rows.iter().map(|row| &*row[0]).collect();
    assert_eq!(said, Kind::ALL.map(Kind::name));
    for (row, kind) in rows.iter().zip(Kind::ALL) {
        let verdicts = Verdict::ALL
            .iter()
            .filter(|verdict| Kind::of(**verdict).contains(&kind))
            .map(|verdict| verdict.reason());
        for verdict in verdicts {
            assert!(row[1].split(", ").any(|said| said == verdict), "{kind:?}: {verdict}");
        }
    }
}

#[test]
fn the_metrics_page_has_every_metric_in_order_with_its_kind_labels_and_meaning() {
    let text = document("metrics.md");
    let said = rows(&text, "\n## Metrics\n");
    let meant: Vec<Vec<String>> = METRICS
        .iter()
        .map(|metric| {
            let kind = match metric.shape {
                Shape::Gauge => "gauge",
                Shape::Counter => "counter",
                Shape::Histogram => "histogram",
            };
            let labels = metric.labels.join(", ");
            vec![metric.name(), kind.to_owned(), labels, metric.help.replace('`', "")]
        })
        .collect();
    assert_eq!(said, meant);
    for alert in rows(&text, "\n## Worth an alert\n") {
        let of_ours = METRICS.iter().any(|metric| {
            let name = metric.name();
            alert[1].contains(&name) || alert[1].contains(&format!("{name}_bucket"))
        });
        assert!(of_ours, "no metric of ours in {alert:?}");
    }
    for bound in [MAX_VIP_SERIES, MAX_BACKEND_SERIES] {
        let thousands = format!("{},{:03}", bound / 1000, bound % 1000);
        assert!(text.contains(&thousands), "the bound {thousands}");
    }
}
