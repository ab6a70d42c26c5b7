//! The map ABI as text, compared with what was committed: a layout does not change by accident, and not without its version.
//!
//! Never a reason by itself to move the version: numbers that only bound how much fits may change as they like.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{fmt::Write as _, mem::offset_of, path::PathBuf};

use xdp_prog::{
    abi::{
        self, ABI_VERSION, BackendLine, BucketV4, BucketV6, Candidate, CaptureState, Config, EntryV6, FlowBucket,
        FlowCounts, FlowLives, FlowRecord, FlowState, FlowTail, FlowWord, KeyV4, KeyV6, LimitState, LineMeta, Method,
        OuterHeader, Range, SampleHeader, Schedule, SetRef, SlotWord, SlowBudget, SlowState, TableUnit, Traffic,
        VipIndex, VipMeta, VipOptions, feature, map, setting, socket_key, tick_shift,
    },
    verdict::Verdict,
};

const BLESS: &str = "UPDATE_ABI";

macro_rules! layout {
    ($text:ident, $kind:ident { $($field:ident),+ $(,)? }) => {
        writeln!($text, "{}: {} bytes, aligned to {}", stringify!($kind), size_of::<$kind>(), align_of::<$kind>()).unwrap();
        // A field that the list forgets does not compile.
        #[allow(unused_variables, reason = "names, not values")]
        fn complete(value: $kind) { let $kind { $($field),+ } = value; }
        let _ = complete;
        $(writeln!($text, "  {:>3} {}", offset_of!($kind, $field), stringify!($field)).unwrap();)+
    };
}

macro_rules! constants {
    ($text:ident, $($path:path),+ $(,)?) => {
        $(writeln!($text, "{} = {:#x}", stringify!($path), $path).unwrap();)+
    };
}

fn rendered() -> String {
    let mut text = format!("ABI_VERSION = {ABI_VERSION}\n\n");
    {
        layout!(
            text,
            BackendLine {
                meta,
                destination_mac,
                source_mac,
                outer
            }
        );
    }
    {
        layout!(text, BucketV4 { keys, metas });
    }
    {
        layout!(text, EntryV6 { high, low, tail, meta });
    }
    {
        layout!(text, BucketV6 { entries });
    }
    {
        layout!(
            text,
            VipOptions {
                packet_rate,
                packet_burst,
                syn_rate,
                syn_burst,
                allowed_sources,
                schedule,
                affinity,
                reserved
            }
        );
    }
    {
        layout!(
            text,
            Range {
                first_high,
                first_low,
                last_high,
                last_low
            }
        );
    }
    {
        layout!(text, Traffic { packets, bytes });
    }
    {
        layout!(
            text,
            LimitState {
                packet_tokens,
                packet_jiffy,
                syn_tokens,
                syn_jiffy
            }
        );
    }
    {
        layout!(text, SlowBudget { rate, burst });
    }
    {
        layout!(text, SlowState { tokens, jiffy, shed });
    }
    {
        layout!(
            text,
            SampleHeader {
                time_ns,
                verdict,
                vip,
                backend,
                ifindex,
                queue,
                original_len,
                len,
                captured_len
            }
        );
    }
    {
        layout!(
            text,
            CaptureState {
                tokens,
                jiffy,
                vip,
                backend,
                original_len,
                lost
            }
        );
    }
    {
        layout!(
            text,
            Config {
                abi_version,
                features,
                seed,
                match_salt,
                match_mask_v4,
                match_mask_v6,
                source_mask_v4,
                source_mask_v6,
                flow_mask,
                flow_secret,
                tick_shift,
            }
        );
    }
    {
        layout!(text, FlowRecord { word, tail });
    }
    {
        layout!(text, FlowBucket { records });
    }
    {
        layout!(
            text,
            FlowCounts {
                syns,
                datagrams,
                scheduled,
                clients
            }
        );
    }
    words(&mut text);
    text.push_str("\nconstants\n");
    constants!(
        text,
        abi::WAYS_V4,
        abi::WAYS_V6,
        abi::MIN_TABLE_SLOTS,
        abi::MAX_TABLE_SLOTS,
        abi::UNIT_SLOTS,
        abi::SLOTS_PER_WORD,
        abi::SEGMENT_WORDS,
        abi::SEGMENT_UNITS,
        abi::MAX_SEGMENTS,
        abi::MAX_BACKENDS,
        abi::MAX_VIPS,
        abi::MAX_BUCKETS,
        abi::MAX_SET_LOG2,
        abi::MAX_RANGES,
        abi::MAX_PORTS,
        abi::MAX_QUEUES,
        abi::MAX_VERDICTS,
        abi::WIDE_WORDS,
        abi::FLOW_WAYS,
        abi::FLOW_SYN_WAYS,
        abi::MAX_FLOW_BUCKETS,
        feature::LIMITS,
        feature::SOURCE_RANGES,
        feature::DENIED_SOURCES,
        feature::DROP_MARTIANS,
        feature::DROP_SOURCE_IS_VIP,
        feature::REDIRECT,
        feature::SLOW_PATH,
        feature::DECAP,
        feature::SOURCE_PREFIX,
        feature::CLAMP_MSS,
        feature::CAPTURE,
        feature::AFFINITY,
        feature::TRANSIT,
        feature::SCHEDULERS,
        feature::ALL,
        setting::DENIED_SOURCES,
        setting::TUNNEL_SOURCES,
        setting::TUNNEL_VIPS,
        setting::TUNNEL_LOCALS,
        setting::TUNNEL_DENIED,
        setting::CAPTURE_VERDICTS,
        setting::CAPTURE_VIP,
        setting::CAPTURE_SAMPLE,
        setting::CAPTURE_RATE,
        setting::CAPTURE_BURST,
        setting::CAPTURE_SNAPLEN,
        setting::FLOW_LIVES,
        setting::COUNT,
    );
    text.push_str("\nmaps\n");
    for name in [
        map::VIPS_V4,
        map::VIPS_V6,
        map::LOOKUP_TABLES,
        map::BACKENDS,
        map::VIP_OPTIONS,
        map::RANGES,
        map::FLOWS,
        map::FLOW_MARKS,
        map::FLOW_COUNTS,
        map::OPEN_FLOWS,
        map::TURNS,
        map::SETTINGS,
        map::COUNTERS,
        map::VIP_COUNTERS,
        map::BACKEND_COUNTERS,
        map::LIMITS,
        map::PORTS,
        map::XSKS,
        map::XSK_INDEX,
        map::SLOW_BUDGETS,
        map::SLOW_STATES,
        map::SAMPLES,
        map::CAPTURES,
        map::CONFIG,
    ] {
        writeln!(text, "{name}").unwrap();
    }
    text.push_str("\npositions in COUNTERS\n");
    for (position, verdict) in Verdict::ALL.iter().enumerate() {
        writeln!(text, "{position:>2} {}.{}", verdict.fate().name(), verdict.reason()).unwrap();
    }
    text
}

/// Words whose bits have a meaning: the layout is in the constructors, so what they make of an example stands here.
fn words(text: &mut String) {
    let v4 = [192, 0, 2, 80].into();
    let v6 = "2001:db8:1::80".parse().unwrap();
    text.push_str("\nwords\n");
    writeln!(text, "KeyV4 192.0.2.80 6 443 = {:#018x}", KeyV4::new(v4, 6, 443).0).unwrap();
    let KeyV6 { high, low, tail } = KeyV6::new(v6, 17, 53);
    writeln!(
        text,
        "KeyV6 2001:db8:1::80 17 53 = {high:#018x} {low:#018x} {tail:#018x}"
    )
    .unwrap();
    let (salt, mask) = (0x0123_4567_89ab_cdef, 0xffff);
    writeln!(
        text,
        "KeyV4 buckets = {:x?}",
        KeyV4::new(v4, 6, 443).buckets(salt, mask)
    )
    .unwrap();
    writeln!(
        text,
        "KeyV6 buckets = {:x?}",
        KeyV6::new(v6, 17, 53).buckets(salt, mask)
    )
    .unwrap();
    let meta = VipMeta::new(VipIndex(0x12345), TableUnit(0x6789a), 4096, VipMeta::OPTIONS);
    writeln!(text, "VipMeta 0x12345 0x6789a 4096 OPTIONS = {:#018x}", meta.0).unwrap();
    writeln!(text, "VipMeta OWN_ADDRESS = {:#018x}", VipMeta::OWN_ADDRESS).unwrap();
    writeln!(text, "VipMeta OVERFLOW = {:#018x}", VipMeta::OVERFLOW).unwrap();
    writeln!(text, "VipMeta CLAMP_MSS = {:#018x}", VipMeta::CLAMP_MSS).unwrap();
    writeln!(text, "VipMeta CLIENT_AFFINITY = {:#018x}", VipMeta::CLIENT_AFFINITY).unwrap();
    writeln!(text, "VipMeta TRANSIT = {:#018x}", VipMeta::TRANSIT).unwrap();
    writeln!(text, "VipMeta RECORDS = {:#018x}", VipMeta::RECORDS).unwrap();
    writeln!(text, "VipMeta SCHEDULED = {:#018x}", VipMeta::SCHEDULED).unwrap();
    let schedule = Schedule::new(Method::Turn, TableUnit(0x6789a), 0x1234, 0x4000, Schedule::EACH);
    writeln!(text, "Schedule Turn 0x6789a 0x1234 0x4000 EACH = {:#018x}", schedule.0).unwrap();
    let methods = [
        Method::Slot,
        Method::Turn,
        Method::Least,
        Method::Expected,
        Method::Idle,
    ];
    writeln!(text, "Method = {:?}", methods.map(|method| method as u8)).unwrap();
    writeln!(
        text,
        "Candidate 0x1234 0x5678 = {:#018x}",
        Candidate::new(0x1234, 0x5678).0
    )
    .unwrap();
    let slot = SlotWord::new(
        0x1111,
        0x2222,
        0x3333,
        SlotWord::TCP | SlotWord::UDP | SlotWord::LEARNING,
    );
    writeln!(
        text,
        "SlotWord 0x1111 0x2222 0x3333 TCP UDP LEARNING = {:#018x}",
        slot.0
    )
    .unwrap();
    for state in [
        FlowState::Syn,
        FlowState::Confirmed,
        FlowState::Closing,
        FlowState::Reset,
        FlowState::Datagram,
        FlowState::Client,
        FlowState::Swept,
    ] {
        let word = FlowWord::new(0xabcd_e000_0000_0000, 0x1234, state, 0x12_3456).0;
        writeln!(text, "FlowWord 0xabcde 0x1234 {state:?} 0x123456 = {word:#018x}").unwrap();
    }
    let scheduled =
        FlowWord::new(0xabcd_e000_0000_0000, 0x1234, FlowState::Confirmed, 0x12_3456).marked(FlowState::SCHEDULED);
    writeln!(
        text,
        "FlowWord 0xabcde 0x1234 Confirmed SCHEDULED 0x123456 = {:#018x}",
        scheduled.0
    )
    .unwrap();
    writeln!(
        text,
        "FlowTail 0x1234 0x5678 = {:#018x}",
        FlowTail::new(0x1234, 0x5678).0
    )
    .unwrap();
    writeln!(text, "FlowLives 1 2 3 4 s = {:#018x}", FlowLives::new(4, 8, 12, 16).0).unwrap();
    writeln!(text, "tick_shift 100 250 1000 = {:?}", [100, 250, 1000].map(tick_shift)).unwrap();
    writeln!(text, "socket_key 9 5 = {:#018x}", socket_key(9, 5)).unwrap();
    for (name, flag) in [
        ("RESOLVED", LineMeta::RESOLVED),
        ("OUTER_V6", LineMeta::OUTER_V6),
        ("LOCAL", LineMeta::LOCAL),
        ("OWN_TAGS", LineMeta::OWN_TAGS),
        ("OUTER_TAG_8021AD", LineMeta::OUTER_TAG_8021AD),
        ("ALIVE", LineMeta::ALIVE),
    ] {
        writeln!(
            text,
            "LineMeta {name}, 2 tags, port 5, MTU 1500, interface 9 = {:#018x}",
            LineMeta::new(flag, 2, 5, 1500, 9).0
        )
        .unwrap();
    }
    writeln!(
        text,
        "mac_word 02:00:00:00:00:fe 0x6123 = {:#018x}",
        BackendLine::mac_word([2, 0, 0, 0, 0, 0xfe], 0x6123)
    )
    .unwrap();
    writeln!(
        text,
        "OuterHeader v4 = {:016x?}",
        OuterHeader::v4([10, 0, 0, 1].into(), [10, 0, 0, 11].into()).0
    )
    .unwrap();
    let outer_v6 = OuterHeader::v6("fd00::1".parse().unwrap(), "fd00::11".parse().unwrap());
    writeln!(text, "OuterHeader v6 = {:016x?}", outer_v6.0).unwrap();
    writeln!(text, "SetRef 0x1234 3 = {:#018x}", SetRef::new(0x1234, 3).0).unwrap();
    writeln!(text, "Range::PADDING = {:x?}", Range::PADDING).unwrap();
}

/// What a new version is for: everything but bounds, which may move, and the list of counters, which may grow at its end.
fn binding(text: &str) -> (Vec<&str>, Vec<&str>) {
    let (layouts, rest) = text.split_once("\nconstants\n").unwrap_or((text, ""));
    let (constants, rest) = rest.split_once("\nmaps\n").unwrap_or((rest, ""));
    let (maps, counters) = rest.split_once("\npositions in COUNTERS\n").unwrap_or((rest, ""));
    let constants = constants
        .lines()
        .filter(|line| !line.starts_with("abi::MAX_") && !line.starts_with("feature::ALL"));
    (
        layouts.lines().chain(constants).chain(maps.lines()).collect(),
        counters.lines().collect(),
    )
}

/// Whether user space of one text understands the maps of the other; an older one may know fewer counters.
fn is_compatible(old: &str, new: &str) -> bool {
    let ((old, old_counters), (new, new_counters)) = (binding(old), binding(new));
    old == new && new_counters.starts_with(&old_counters)
}

#[test]
fn no_layout_changes_without_its_version() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/abi.snapshot");
    let now = rendered();
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    if committed == now {
        return;
    }
    let moved = committed.is_empty() || committed.lines().next() != now.lines().next();
    if std::env::var_os(BLESS).is_some_and(|value| value == "1") && (moved || is_compatible(&committed, &now)) {
        std::fs::write(&path, &now).expect("the snapshot can be written");
        return;
    }
    let changed: Vec<String> = committed
        .lines()
        .filter(|line| !now.lines().any(|other| other == *line))
        .map(|line| format!("- {line}"))
        .chain(
            now.lines()
                .filter(|line| !committed.lines().any(|other| other == *line))
                .map(|line| format!("+ {line}")),
        )
        .collect();
    panic!(
        "layout changed: move ABI_VERSION and bless with {BLESS}=1 (cargo test -p xdp-prog --test abi)\n{}",
        changed.join("\n")
    );
}

#[test]
fn bounds_and_new_counters_need_no_version_and_the_rest_does() {
    let now = rendered();
    assert!(is_compatible(
        &now,
        &now.replace("abi::MAX_PORTS = 0x40", "abi::MAX_PORTS = 0x80")
    ));
    assert!(is_compatible(&now, &format!("{now}33 drop.new\n")));
    assert!(!is_compatible(&format!("{now}33 drop.new\n"), &now));
    for (from, to) in [
        ("   16 source_mac", "   24 source_mac"),
        ("BACKENDS\n", "BACKENDS2\n"),
        ("feature::DECAP = 0x80", "feature::DECAP = 0x40"),
        (" 5 pass.not_vip\n", ""),
        ("SetRef 0x1234 3 = 0x8", "SetRef 0x1234 3 = 0x4"),
    ] {
        let changed = now.replace(from, to);
        assert_ne!(changed, now, "{from} stands in the text");
        assert!(!is_compatible(&now, &changed), "{from} -> {to}");
    }
}

#[test]
fn the_snapshot_says_which_version_it_is_of() {
    assert!(rendered().starts_with(&format!("ABI_VERSION = {ABI_VERSION}\n")));
}
