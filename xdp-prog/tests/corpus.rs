//! Frames that were trouble once, or could be: replayed through the host build of both programs.
//!
//! Never written by hand alone: `UPDATE_CORPUS=1` fills in the verdicts, and whoever commits them has looked at them. A file is
//! `# what it is`, `balance: <reason>`, `worker: <reason>` and the frame in hex, any white space between bytes.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{fs, path::PathBuf};

use xdp_prog::{
    abi::{
        BackendLine, BucketV4, BucketV6, Config, KeyV4, KeyV6, LineMeta, OuterHeader, Range, SEGMENT_WORDS,
        SLOTS_PER_WORD, SetRef, TableUnit, UNIT_SLOTS, VipIndex, VipMeta, VipOptions, feature, setting,
    },
    host::{Host, View},
};

/// TCP 80 and UDP 53 of 192.0.2.80 and 2001:db8:1::80; a worker 10.0.0.11 and fd00::1:1 of the LB nodes 10.0.0.1 and fd00::1.
struct World {
    config: Config,
    vips_v4: Vec<BucketV4>,
    vips_v6: Vec<BucketV6>,
    slots: Vec<u64>,
    backends: Vec<BackendLine>,
    options: Vec<VipOptions>,
    ranges: Vec<Range>,
    settings: Vec<u64>,
}

fn range(first: &str, last: &str) -> Range {
    let number = |address: &str| xdp_prog::abi::number(address.parse().unwrap());
    Range::new(number(first), number(last))
}

fn world() -> World {
    let v4 = [192, 0, 2, 80].into();
    let v6 = "2001:db8:1::80".parse().unwrap();
    // One bucket of four ways for IPv4; IPv6's keys go where they say.
    let meta = VipMeta::new(VipIndex(1), TableUnit(1), UNIT_SLOTS, 0).0;
    let keys = [
        KeyV4::new(v4, 6, 80).0,
        KeyV4::new(v4, 17, 53).0,
        KeyV4::address(v4).0,
        0,
    ];
    let mut vips_v6 = vec![BucketV6::default(); 16];
    let config = Config {
        features: feature::ALL & !feature::SLOW_PATH,
        match_mask_v6: 15,
        ..Config::EMPTY
    };
    for key in [KeyV6::new(v6, 6, 80), KeyV6::new(v6, 17, 53), KeyV6::address(v6)] {
        let [first, second, third] = key.buckets(config.match_salt, config.match_mask_v6);
        let (bucket, way) = [first, second, third]
            .into_iter()
            .flat_map(|bucket| [(bucket as usize, 0), (bucket as usize, 1)])
            .find(|&(bucket, way)| vips_v6[bucket].entries[way].tail == 0)
            .expect("room");
        let entry = &mut vips_v6[bucket].entries[way];
        (entry.high, entry.low, entry.tail, entry.meta) = (key.high, key.low, key.tail, meta);
        if bucket != first as usize {
            vips_v6[first as usize].entries[0].meta |= VipMeta::OVERFLOW;
        }
    }
    let mut slots = vec![0; SEGMENT_WORDS];
    let words = UNIT_SLOTS / SLOTS_PER_WORD;
    slots[words..2 * words].fill(0x0002_0001_0002_0001);
    let resolved = |flags| LineMeta::new(LineMeta::RESOLVED | flags, 0, 0, 1500, 1).0;
    let outer_v4 = OuterHeader::v4([10, 0, 0, 1].into(), [10, 0, 0, 12].into());
    let outer_v6 = OuterHeader::v6("fd00::1".parse().unwrap(), "fd00::12".parse().unwrap());
    let backends = vec![
        BackendLine::default(),
        BackendLine {
            meta: resolved(0),
            ..BackendLine::unresolved(outer_v4)
        },
        BackendLine {
            meta: resolved(LineMeta::OUTER_V6),
            ..BackendLine::unresolved(outer_v6)
        },
    ];
    let ranges = vec![
        range("10.0.0.11", "10.0.0.11"),
        range("fd00::1:1", "fd00::1:1"),
        range("10.0.0.1", "10.0.0.1"),
        range("fd00::1", "fd00::1"),
        range("192.0.2.0", "192.0.2.255"),
        range("2001:db8:1::", "2001:db8:1:ffff:ffff:ffff:ffff:ffff"),
    ];
    let mut settings = vec![0; setting::COUNT as usize];
    settings[setting::TUNNEL_LOCALS as usize] = SetRef::new(0, 1).0;
    settings[setting::TUNNEL_SOURCES as usize] = SetRef::new(2, 1).0;
    settings[setting::TUNNEL_VIPS as usize] = SetRef::new(4, 1).0;
    World {
        config,
        vips_v4: vec![BucketV4 { keys, metas: [meta; 4] }],
        vips_v6,
        slots,
        backends,
        options: vec![VipOptions::default(); 2],
        ranges,
        settings,
    }
}

impl World {
    fn view(&self) -> View<'_> {
        View {
            config: &self.config,
            vips_v4: &self.vips_v4,
            vips_v6: &self.vips_v6,
            segments: vec![&self.slots],
            backends: &self.backends,
            options: &self.options,
            ranges: &self.ranges,
            settings: &self.settings,
            flows: &[],
            flow_marks: &[],
            open_flows: &[],
            turns: &[],
        }
    }
}

struct Entry {
    path: PathBuf,
    comments: Vec<String>,
    verdicts: Vec<String>,
    frame: Vec<u8>,
}

fn entries() -> Vec<Entry> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "hex"));
    paths.sort();
    paths.into_iter().map(read).collect()
}

fn read(path: PathBuf) -> Entry {
    let mut entry = Entry {
        path,
        comments: Vec::new(),
        verdicts: Vec::new(),
        frame: Vec::new(),
    };
    for line in fs::read_to_string(&entry.path).unwrap().lines() {
        if line.starts_with('#') {
            entry.comments.push(line.to_owned());
        } else if line.contains(':') {
            entry.verdicts.push(line.to_owned());
        } else {
            let digits: String = line.split_whitespace().collect();
            let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex");
            entry.frame.extend((0..digits.len()).step_by(2).map(byte));
        }
    }
    entry
}

impl Entry {
    fn write(&self, verdicts: &[String]) {
        let rows = self.frame.chunks(16).map(|row| {
            row.iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<Vec<_>>()
                .join(" ")
        });
        let lines: Vec<String> = self.comments.iter().chain(verdicts).cloned().chain(rows).collect();
        fs::write(&self.path, lines.join("\n") + "\n").expect("the corpus can be written");
    }
}

#[test]
fn every_frame_of_the_corpus_gets_the_verdict_it_always_got() {
    let world = world();
    let entries = entries();
    assert!(entries.len() >= 10, "the corpus is there");
    for entry in entries {
        let mut host = Host::new(world.view(), 1);
        let verdicts = [
            format!("balance: {}", host.balance(&entry.frame).verdict.reason()),
            format!("worker: {}", host.unwrap_tunnel(&entry.frame).verdict.reason()),
        ];
        if std::env::var_os("UPDATE_CORPUS").is_some_and(|value| value == "1") {
            entry.write(&verdicts);
            continue;
        }
        assert_eq!(
            entry.verdicts,
            verdicts,
            "{} {:?}",
            entry.path.display(),
            entry.comments
        );
    }
}

/// And whatever is left of them when they are cut or one of their bits is wrong: some verdict, nothing read past the end.
#[test]
fn no_part_and_no_bit_flip_of_the_corpus_is_trouble() {
    let world = world();
    let mut host = Host::new(world.view(), 1);
    for Entry { frame, .. } in entries() {
        for len in 0..=frame.len().min(200) {
            for outcome in [host.balance(&frame[..len]), host.unwrap_tunnel(&frame[..len])] {
                assert!(outcome.frame.len() <= len + 40 && outcome.frame.len() + 40 >= len);
            }
        }
        for bit in 0..frame.len().min(120) * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            for outcome in [host.balance(&flipped), host.unwrap_tunnel(&flipped)] {
                assert!(outcome.frame.len() <= flipped.len() + 40 && outcome.frame.len() + 40 >= flipped.len());
            }
        }
    }
}
