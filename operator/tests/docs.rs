//! The documents say what the code does: names of tests, annotations, conditions, Events, metrics.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn document(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).unwrap()
}

/// All Rust sources below some rooms.
fn sources(rooms: &[&str]) -> Vec<String> {
    let mut open: Vec<PathBuf> = rooms.iter().map(|room| root().join(room)).collect();
    let mut texts = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            texts.push(fs::read_to_string(path).unwrap());
        }
    }
    texts
}

/// Words in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Values of all string constants of a source whose names begin so.
fn constants<'a>(source: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    source
        .lines()
        .filter_map(move |line| line.strip_prefix("pub const ")?.starts_with(prefix).then_some(line))
        .filter_map(|line| line.split('"').nth(1))
}

#[test]
fn every_test_that_the_conformance_table_names_exists() {
    let known = sources(&["operator", "lb", "lb/core", "xdp-prog"]);
    let tests: BTreeSet<&str> = known
        .iter()
        .flat_map(|text| text.split("fn ").skip(1))
        .filter_map(|rest| rest.split('(').next())
        .collect();
    let table = document("conformance.md");
    let mut named = 0;
    for name in quoted(&table).filter(|name| name.matches('_').count() >= 3) {
        assert!(tests.contains(name), "docs/conformance.md: no test {name}");
        named += 1;
    }
    assert!(named > 50, "{named}");
}

#[test]
fn every_annotation_and_condition_is_explained() {
    let names = fs::read_to_string(root().join("operator/api/src/names.rs")).unwrap();
    let text = document("services.md") + &document("pools.md");
    let mut seen = 0;
    for prefix in ["ANNOTATION_", "CONDITION_", "FINALIZER"] {
        for value in constants(&names, prefix).filter(|value| *value != "Ready") {
            assert!(
                text.contains(value),
                "{value} is in neither docs/services.md nor docs/pools.md"
            );
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn every_metric_stands_in_the_reference() {
    let source = fs::read_to_string(root().join("operator/src/run/metrics.rs")).unwrap();
    let text = document("operator-metrics.md");
    let calls = source.split("registry.register").skip(1);
    let mut seen = 0;
    for call in calls {
        let name = call.split('"').nth(1).unwrap();
        let last = name.rsplit('_').next().unwrap();
        let stands = text.contains(&format!("`vipline_operator_{name}")) || text.contains(&format!("`…_{last}"));
        assert!(stands, "docs/operator-metrics.md: no metric {name}");
        seen += 1;
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn every_event_stands_in_the_reference() {
    let text = document("services.md");
    let mut seen = 0;
    for source in sources(&["operator/src/decide", "operator/src/run/explain.rs"]) {
        let code = source.split("#[cfg(test)]").next().unwrap();
        for word in code.split('"').skip(1).step_by(2) {
            let is_reason = ["LoadBalancer", "IPAllocated", "AllocationFailed", "Refused"]
                .iter()
                .any(|part| word.contains(part))
                && word.chars().all(|letter| letter.is_ascii_alphanumeric())
                && word != "LoadBalancer";
            if is_reason {
                assert!(text.contains(&format!("`{word}`")), "docs/services.md: no Event {word}");
                seen += 1;
            }
        }
    }
    assert!(seen > 0, "{seen}");
}

#[test]
fn every_option_of_the_operator_stands_in_the_reference() {
    let source = fs::read_to_string(root().join("operator/src/run/cli/args.rs")).unwrap();
    let text = document("operator.md") + &document("migration-metallb.md");
    let run = source
        .split("struct RunArgs")
        .nth(1)
        .unwrap()
        .split("\n}")
        .next()
        .unwrap();
    for line in run.lines().filter_map(|line| line.trim().strip_prefix("pub(super) ")) {
        let option = line.split(':').next().unwrap().replace('_', "-");
        if !["api", "class", "identity"].contains(&option.as_str()) {
            assert!(
                text.contains(&format!("--{option}")),
                "docs/operator.md: no option --{option}"
            );
        }
    }
}
