//! Files that are wrong, replayed: every `corpus/config/NAME.lb.yaml` and `NAME.node.yaml` with the exact errors beside it in
//! `NAME.*.errors`. `UPDATE_GOLDEN=1` rewrites those; read the difference before you commit it.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot go on has failed, and this one reads files (lb-core itself does not)"
)]

use std::{collections::BTreeSet, fs, path::Path};

use lb_core::config::{ConfigErrors, LbConfig, NodeConfig, text};

/// The errors of a file, by the role in its name.
fn errors_of(path: &Path) -> ConfigErrors {
    let bytes = fs::read(path).unwrap();
    let is_node = path.to_string_lossy().ends_with(".node.yaml");
    let parsed = text(&bytes).and_then(|yaml| match is_node {
        true => NodeConfig::parse(yaml).map(drop),
        false => LbConfig::parse(yaml).map(drop),
    });
    parsed.expect_err(&format!(
        "{} is right, and is in the corpus of wrong files",
        path.display()
    ))
}

#[test]
fn every_wrong_file_gives_exactly_the_errors_beside_it() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/config");
    let files: BTreeSet<_> = fs::read_dir(corpus)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut replayed = 0;
    for path in files
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
    {
        let found = format!("{}\n", errors_of(path));
        let golden = path.with_extension("errors");
        if update {
            fs::write(&golden, &found).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(found, expected, "{}", path.display());
        replayed += 1;
    }
    assert!(replayed >= 20, "only {replayed} files found");
}
