//! Maps: what user space stores is what the program sees, and what it counts is what user space reads.

use std::time::Instant;

use anyhow::Result;
use aya::maps::{Array, MapData};
use lb::datapath::{Balancer, Capacity, DatapathError, Plain, grace_period, jiffies_per_second};
use xdp_prog::{
    abi::{BackendLine, BucketV4, Config, KeyV4, MAX_VERDICTS, SEGMENT_UNITS, SEGMENT_WORDS, Traffic},
    verdict::Verdict,
};

use crate::vip::{BACKEND, VIP, XDP_DROP, XDP_PASS, XDP_TX, add_backend, add_vip, balancer, syn};

#[test]
fn a_store_is_seen_by_the_kernel_and_by_the_program() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut balancer = balancer()?;
    balancer.slots.add_segment()?;
    assert_eq!(balancer.program.test_run(&syn(), 1)?.retval, XDP_PASS);
    add_vip(&balancer, 0)?;

    let id = balancer.vips_v4.data().info()?.id();
    let by_lookup: Array<MapData, Plain<BucketV4>> =
        aya::maps::Map::from_map_data(MapData::from_id(id)?)?.try_into()?;
    let bucket = by_lookup.get(&0, 0)?.0;
    assert_eq!(bucket.keys, [KeyV4::new(VIP, 6, 80).0, KeyV4::address(VIP).0, 0, 0]);
    assert_eq!(bucket, balancer.vips_v4.read::<BucketV4>(0)?);

    assert_eq!(balancer.program.test_run(&syn(), 1)?.retval, XDP_DROP);
    assert_eq!(balancer.counters.verdicts.of(Verdict::SlowNoBackend)?, 1);
    balancer.vips_v4.store(0, 0, 0)?;
    balancer.vips_v4.store(0, 1, 0)?;
    assert_eq!(balancer.program.test_run(&syn(), 1)?.retval, XDP_PASS);
    Ok(())
}

#[test]
fn segments_are_added_while_the_program_runs() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut balancer = balancer()?;
    let verdicts = |balancer: &Balancer| -> Result<Vec<Verdict>> {
        let counted = balancer.counters.verdicts.read()?;
        Ok(counted
            .into_iter()
            .filter(|(_, packets)| *packets > 0)
            .map(|(verdict, _)| verdict)
            .collect())
    };
    assert_eq!(balancer.slots.add_segment()?, 0);
    add_vip(&balancer, SEGMENT_UNITS as u32)?;
    balancer.program.test_run(&syn(), 1)?;
    assert_eq!(
        verdicts(&balancer)?,
        [Verdict::DropInternal],
        "the VIP's table is in a segment that is not there"
    );

    assert_eq!(balancer.slots.add_segment()?, 1);
    balancer.program.test_run(&syn(), 1)?;
    assert_eq!(verdicts(&balancer)?, [Verdict::SlowNoBackend, Verdict::DropInternal]);

    for word in 0..256 / 4 {
        balancer
            .slots
            .store(SEGMENT_WORDS as u32 + word, 0x0005_0005_0005_0005)?;
    }
    balancer.program.test_run(&syn(), 1)?;
    assert_eq!(
        verdicts(&balancer)?,
        [Verdict::SlowNoBackend, Verdict::SlowNextHop, Verdict::DropInternal]
    );

    add_backend(&balancer)?;
    let run = balancer.program.test_run(&syn(), 1)?;
    assert_eq!(run.retval, XDP_TX);
    assert_eq!(run.data_out.len(), syn().len() + 20);
    assert_eq!(
        run.data_out[30..34],
        BACKEND.octets(),
        "the outer destination is the backend"
    );
    assert_eq!(
        balancer.backends.read::<BackendLine>(5)?.destination_mac,
        BackendLine::mac_word([2, 0, 0, 0, 0, 2], 0)
    );

    let full = balancer.slots.add_segment();
    assert!(
        matches!(full, Err(DatapathError::SlotMemoryFull { segments: 2 })),
        "{full:?}"
    );
    Ok(())
}

#[test]
fn positions_outside_of_a_map_are_refused_and_nothing_is_written() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut balancer = balancer()?;
    for (index, word) in [(1, 0), (0, 8), (u32::MAX, 0), (0, u32::MAX)] {
        let error = balancer.vips_v4.store(index, word, 7);
        assert!(
            matches!(
                error,
                Err(DatapathError::OutOfBounds {
                    entries: 1,
                    words: 8,
                    ..
                })
            ),
            "{error:?}"
        );
    }
    assert!(
        balancer.backends.fill(64, &[7; 9]).is_err(),
        "the ninth word is one too many"
    );
    assert_eq!(balancer.backends.read::<BackendLine>(64)?, BackendLine::default());
    assert!(balancer.slots.store(0, 7).is_err(), "no segment yet");
    balancer.slots.add_segment()?;
    assert!(balancer.slots.store(SEGMENT_WORDS as u32, 7).is_err());
    assert!(balancer.backends.read::<u64>(1).is_err(), "a line is not one word");
    Ok(())
}

#[test]
fn counters_are_summed_in_batches_and_one_by_one_alike() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut balancer = Balancer::load(
        &Config::EMPTY,
        &Capacity {
            vips: 3_000,
            backends: 2_047,
            table_segments: 1,
            ranges: 1,
        },
    )?;
    balancer.slots.add_segment()?;
    add_vip(&balancer, 1)?;
    add_backend(&balancer)?;
    for word in 64..128 {
        balancer.slots.store(word, 0x0005_0005_0005_0005)?;
    }
    for _ in 0..10 {
        balancer.program.test_run(&syn(), 1)?;
    }
    let expected = Traffic {
        packets: 10,
        bytes: 10 * (syn().len() as u64 - 14),
    };
    for (counters, index, entries) in [
        (&balancer.counters.vips, 3, 3_000),
        (&balancer.counters.backends, 5, 2_048),
    ] {
        let sums = counters.sums(u32::MAX)?;
        assert_eq!(sums.len(), entries);
        for (position, sum) in sums.iter().enumerate() {
            assert_eq!(
                *sum,
                if position == index {
                    expected
                } else {
                    Traffic::default()
                },
                "at {position}"
            );
        }
        assert_eq!(counters.sum(index as u32)?, expected);
        assert_eq!(counters.sums(4)?.len(), 4);
        assert!(counters.sum(entries as u32).is_err());
    }
    balancer.counters.vips.zero(3)?;
    assert_eq!(balancer.counters.vips.sum(3)?, Traffic::default());
    assert_eq!(
        balancer.counters.backends.sum(5)?,
        expected,
        "only the one that was asked for"
    );
    let verdicts = balancer.counters.verdicts.read()?;
    assert!(verdicts.len() <= MAX_VERDICTS);
    assert_eq!(verdicts.iter().map(|(_, packets)| packets).sum::<u64>(), 10);
    Ok(())
}

#[test]
fn a_grace_period_ends_and_a_jiffy_has_a_length() -> Result<()> {
    let waited = grace_period()?;
    assert!(waited < std::time::Duration::from_secs(5), "{waited:?}");
    println!("a grace period took {waited:?}, HZ is {}", jiffies_per_second()?);
    Ok(())
}

#[test]
fn the_kernel_says_what_maps_cost() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let capacity = Capacity {
        vips: 10_000,
        backends: 1_000,
        table_segments: 1,
        ranges: 1,
    };
    let mut balancer = Balancer::load(&Config::EMPTY, &capacity)?;
    balancer.slots.add_segment()?;
    let memory = balancer.memory()?;
    let of = |map| memory.iter().find(|one| one.map == map).map_or(0, |one| one.bytes);
    let cpus = aya::util::nr_cpus().expect("possible CPUs") as u64;
    assert!((1 << 20..1_100_000).contains(&of("LOOKUP_TABLES")), "{memory:?}");
    assert!(
        (10_000 * 16 * cpus..10_000 * 24 * (cpus + 1)).contains(&of("VIP_COUNTERS")),
        "{memory:?}"
    );
    assert!((1_001 * 64..1_001 * 64 + 8_192).contains(&of("BACKENDS")), "{memory:?}");

    let start = Instant::now();
    let sums = balancer.counters.vips.sums(10_000)?;
    println!(
        "{} VIP counters of {cpus} CPUs read in {:?}; {memory:?}",
        sums.len(),
        start.elapsed()
    );
    Ok(())
}
