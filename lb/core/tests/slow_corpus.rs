//! Replays the fuzz corpora through the fuzz targets, and random bytes besides. Never needs a fuzzer.
#![expect(
    clippy::disallowed_methods,
    reason = "lb-core does no IO; its tests read their corpus"
)]

use std::{fs, path::PathBuf};

#[path = "../fuzz/src/targets/mod.rs"]
pub mod targets;

#[test]
fn every_file_of_the_fuzz_corpora_passes_its_target() {
    let corpora = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/slow");
    for (name, target) in targets::ALL {
        let mut files: Vec<PathBuf> = fs::read_dir(corpora.join(name))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "{name} has a corpus");
        for file in files {
            println!("{name}: {}", file.display());
            target(&fs::read(&file).unwrap());
        }
    }
}

proptest::proptest! {
    #[test]
    fn random_bytes_pass_every_target(data in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        for (_, target) in targets::ALL {
            target(&data);
        }
    }
}
