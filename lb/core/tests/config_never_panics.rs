//! No bytes make the configuration panic, hang or grow: random text, random YAML of our own words, and wrong or right files with
//! random cuts, copies and flips.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot go on has failed, and this one reads files (lb-core itself does not)"
)]

use std::{fs, path::Path, time::Instant};

use lb_core::config::{ConfigErrors, LbConfig, MAX_CONFIG_BYTES, NodeConfig, Problem, text, xdp_budgets};
use proptest::prelude::*;

/// Both roles on the same bytes. Errors are printed, because printing is code too, and checked to be whole.
fn both(bytes: &[u8]) -> [Result<(), ConfigErrors>; 2] {
    let lb = text(bytes).and_then(LbConfig::parse).map(|config| {
        // What was accepted must not fail later either.
        let _ = (
            config.features(),
            config.warnings(),
            config.encap.source_masks(),
            config.differs_fixed(&config),
            config.slow_path_restarts(&config),
            xdp_budgets(&config.slow_path, 1),
        );
    });
    let node = text(bytes).and_then(NodeConfig::parse).map(|config| {
        let _ = (config.tunnel(), config.warnings());
    });
    for errors in [&lb, &node].into_iter().filter_map(|result| result.as_ref().err()) {
        let printed = errors.to_string();
        assert!(!errors.errors.is_empty(), "refused without an error");
        assert!(!printed.chars().any(|c| c.is_control() && c != '\n'), "{printed:?}");
        let last = printed.lines().last().unwrap_or_default();
        assert!(last.starts_with(&format!("{} error", errors.count())), "{printed}");
    }
    [lb, node]
}

/// Files to mutate: the examples and the whole corpus.
fn seeds() -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<_> = ["tests/corpus/config", "../../deploy/examples"]
        .iter()
        .flat_map(|folder| fs::read_dir(root.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| fs::read(path).unwrap())
        .filter(|bytes| bytes.len() < 10_000)
        .collect()
}

/// Words that get a file past the first checks.
const WORDS: &[&str] = &[
    "interfaces",
    "seed",
    "seed_file",
    "encap",
    "source",
    "prefix_v4",
    "prefix_v6",
    "protection",
    "denied_sources",
    "capacity",
    "vips",
    "backends",
    "tunnel",
    "sources",
    "vip_prefixes",
    "lb_sources",
    "backend_sets",
    "members",
    "name",
    "address",
    "weight",
    "protocol",
    "port",
    "mode",
    "table_slots",
    "limits",
    "syns_burst",
    "allowed_sources",
    "control_socket",
    "slow_path",
    "cpus",
    "frames_per_queue",
    "fragments",
    "hold",
    "echo",
    "per_second",
    "health",
    "type",
    "http",
    "path",
    "status",
    "200-399",
    "interval_ms",
    "l2",
    "owned",
    "metrics",
    "listen",
    "\"[::]:9430\"",
    "too_big",
    "clamp_mss",
    "affinity",
    "client_ip",
    "tcp",
    "udp",
    "DsrIpip",
    "203.0.113.1",
    "\"2001:db8::1\"",
    "10.0.0.0/8",
    "::/0",
    "/run/x",
    "eth0",
    "80",
    "0",
    "65536",
    "-1",
    "1e400",
    "~",
    "true",
    "node",
    ": ",
    ":\n  ",
    "\n  - ",
    "\n",
    "- ",
    ", ",
    "[",
    "]",
    "{",
    "}",
    "&a ",
    "*a",
    "!t ",
    "<<",
    "? ",
    "| ",
    "> ",
    "'",
    "\"",
    "#",
    "---\n",
    "\t",
    "%",
    "@",
    "\u{feff}",
    "\0",
    "…",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes: Vec<u8>) {
        let _ = both(&bytes);
    }

    #[test]
    fn any_text_of_our_words(words in proptest::collection::vec(proptest::sample::select(WORDS), 0..60)) {
        let _ = both(words.concat().as_bytes());
    }

    #[test]
    fn any_mutation_of_a_real_file(
        which: prop::sample::Index,
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..4u8, any::<u8>()), 1..6),
    ) {
        let seeds = seeds();
        let mut bytes = which.get(&seeds).clone();
        for (from, to, how, byte) in cuts {
            if bytes.is_empty() {
                break;
            }
            let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
            match how {
                0 => bytes[from] = byte,
                1 => bytes.insert(from, byte),
                2 => bytes = [&bytes[..from.min(to)], &bytes[from.max(to).min(from.min(to) + 20)..]].concat(),
                _ => {
                    let piece = bytes[from.min(to)..from.max(to)].to_vec();
                    bytes.splice(to..to, piece);
                }
            }
        }
        let _ = both(&bytes);
    }
}

#[test]
fn mutations_begin_from_files_that_are_right_and_files_that_are_wrong() {
    let seeds = seeds();
    let right = seeds
        .iter()
        .filter(|bytes| both(bytes).iter().any(Result::is_ok))
        .count();
    assert_eq!(right, 2, "the two examples");
    assert!(seeds.len() > 30);
}

/// Text that costs a careless reader quadratic time or memory without bound. A minute is far above what each takes (the worst is
/// flow lists: libyaml looks back 1,024 bytes at every bracket, half a second in a debug build) and far below what an alias bomb takes.
#[test]
fn hostile_text_is_refused_in_time() {
    const SIZE: usize = 1 << 14;
    let nested_alias = |levels: u32| {
        let mut yaml = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..levels {
            let items = vec![format!("*a{}", level - 1); 10].join(", ");
            yaml.push_str(&format!("a{level}: &a{level} [{items}]\n"));
        }
        yaml
    };
    // Few jumps, each over a huge value: within serde_norway's own limit, which counts jumps.
    let wide_alias = format!("a: &a [{}]\nb: [{}]\n", "x, ".repeat(SIZE / 6), "*a, ".repeat(SIZE / 8));
    let hostile: Vec<(&str, String)> = vec![
        ("flow lists", "[".repeat(SIZE)),
        ("flow maps", "{".repeat(SIZE)),
        ("flow maps with keys", "{a: ".repeat(SIZE / 4)),
        ("block lists", "- ".repeat(SIZE / 2)),
        ("explicit keys", "? ".repeat(SIZE / 2)),
        ("anchors", "&a ".repeat(SIZE / 3)),
        ("quotes", "\"".repeat(SIZE)),
        ("percent", "%".repeat(SIZE)),
        ("documents", "---\n".repeat(SIZE / 4)),
        ("empty values", format!("vips: [{}]", "[],".repeat(SIZE / 3))),
        ("unknown keys", (0..SIZE / 16).map(|i| format!("k{i}: 0\n")).collect()),
        ("one key", "vips: []\n".repeat(SIZE / 9)),
        ("a long key", format!("{}: 1", "k".repeat(1000))),
        ("a longer key", format!("{}: 1", "k".repeat(SIZE))),
        ("a long name", format!("interfaces: [{}]", "k".repeat(SIZE))),
        ("nested aliases", nested_alias(30)),
        ("wide aliases", wide_alias),
    ];
    for (what, yaml) in hostile {
        let start = Instant::now();
        assert!(LbConfig::parse(&yaml).is_err(), "{what}");
        let took = start.elapsed();
        println!("{what}: {} bytes, {took:?}", yaml.len());
        assert!(took.as_secs() < 60, "{what}: {took:?}");
    }
}

#[test]
fn a_file_that_is_too_long_is_refused_before_it_is_read() {
    let yaml = " ".repeat(MAX_CONFIG_BYTES + 1);
    for result in both(yaml.as_bytes()) {
        assert_eq!(
            result.unwrap_err().errors[0].problem,
            Problem::TooLarge {
                bytes: MAX_CONFIG_BYTES + 1
            }
        );
    }
    assert!(LbConfig::parse(&yaml).is_err());
}
