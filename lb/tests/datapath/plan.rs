//! Plans on live maps: what the planner believes is what the maps hold.

use anyhow::Result;
use lb::datapath::{Balancer, DatapathError};
use lb_core::plan::{Image, MapId, Write};
use xdp_prog::{
    abi::{BackendIndex, Config, SEGMENT_WORDS, Traffic, VipIndex, feature, setting},
    verdict::Verdict,
};

use crate::vip::{SMALL, add_backend, add_vip, syn};

const MAPS: [MapId; 7] = [
    MapId::VipsV4,
    MapId::VipsV6,
    MapId::LookupTables,
    MapId::Backends,
    MapId::VipOptions,
    MapId::Ranges,
    MapId::Settings,
];

/// Every word of every map, as the image has it and as the kernel has it.
fn assert_alike(image: &Image, balancer: &Balancer) -> Result<()> {
    for map in MAPS {
        let segments = if map == MapId::LookupTables {
            balancer.slots.segments()
        } else {
            1
        };
        for index in 0..segments {
            let words_in_image = image.words(map, index);
            for (word, value) in words_in_image.iter().enumerate() {
                let width = match map {
                    MapId::LookupTables => SEGMENT_WORDS,
                    MapId::Ranges => 4,
                    MapId::Settings => 1,
                    MapId::VipsV4 | MapId::VipsV6 | MapId::Backends | MapId::VipOptions => 8,
                };
                let live = balancer.word(map, index + (word / width) as u32, (word % width) as u32)?;
                assert_eq!(live, *value, "{map} {index} word {word}");
            }
            let end = balancer.word(map, index + words_in_image.len() as u32, 0);
            assert!(
                map == MapId::LookupTables || end.is_err(),
                "{map} is longer than its image"
            );
        }
    }
    Ok(())
}

#[test]
fn a_plan_makes_the_maps_what_the_image_says() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for features in [0, feature::ALL & !feature::SLOW_PATH] {
        let config = Config {
            features,
            match_mask_v4: 3,
            match_mask_v6: 1,
            ..Config::EMPTY
        };
        let mut balancer = Balancer::load(&config, &SMALL)?;
        let mut image = Image::empty(&SMALL, &config);
        assert_alike(&image, &balancer)?;

        let last = SEGMENT_WORDS as u32 - 64;
        let fill = |map, index, word, count: u64| Write::Fill {
            map,
            index,
            word,
            values: (1..=count).collect(),
        };
        let store = |map, index, word, value| Write::Store {
            map,
            index,
            word,
            value,
        };
        let plan = [
            Write::AddSegment(0),
            Write::AddSegment(1),
            fill(MapId::LookupTables, 1, last, 64),
            fill(MapId::VipsV4, 1, 6, 9),
            store(MapId::VipsV6, 1, 7, u64::MAX),
            Write::Grace,
            fill(MapId::Backends, 3, 0, 24),
            store(MapId::LookupTables, 0, 17, 0x0102_0304_0506_0708),
            store(MapId::VipOptions, 0, 4, 9),
            fill(MapId::Ranges, 63, 1, 3),
            store(MapId::Settings, 4, 0, 5),
            Write::Grace,
            Write::ZeroVipCounter(VipIndex(63)),
            Write::ZeroBackendCounter(BackendIndex(64)),
            Write::ZeroLimits(VipIndex(63)),
        ];
        for write in &plan {
            assert!(image.apply(write));
        }
        let applied = balancer.apply(&plan)?;
        assert_eq!((applied.writes, applied.grace_periods), (plan.len(), 2));
        assert!(applied.waited <= applied.took);
        assert_alike(&image, &balancer)?;
    }
    Ok(())
}

#[test]
fn a_plan_that_fails_says_where_and_leaves_what_came_before() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let store = |index| Write::Store {
        map: MapId::Settings,
        index,
        word: 0,
        value: 7,
    };
    let bad = [
        Write::AddSegment(2),
        store(setting::COUNT),
        Write::Fill {
            map: MapId::LookupTables,
            index: 0,
            word: SEGMENT_WORDS as u32 - 1,
            values: Box::new([1, 2]),
        },
        Write::Fill {
            map: MapId::Backends,
            index: 64,
            word: 7,
            values: Box::new([1, 2]),
        },
        Write::ZeroVipCounter(VipIndex(64)),
    ];
    for bad in bad {
        let mut balancer = Balancer::load(&Config::EMPTY, &SMALL)?;
        let result = balancer.apply(&[Write::AddSegment(0), store(1), bad.clone(), store(2)]);
        assert!(
            matches!(result, Err(DatapathError::Plan { done: 2, of: 4, .. })),
            "{bad:?}: {result:?}"
        );
        assert_eq!((balancer.settings.load(1, 0)?, balancer.settings.load(2, 0)?), (7, 0));
        assert_eq!(
            balancer.slots.load(SEGMENT_WORDS as u32 - 1)?,
            0,
            "half a fill is no fill"
        );
    }
    Ok(())
}

#[test]
fn zeroed_counters_are_zero_on_all_cpus() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut balancer = Balancer::load(&Config::EMPTY, &SMALL)?;
    let table = Box::new([0x0005_0005_0005_0005; 64]);
    balancer.apply(&[
        Write::AddSegment(0),
        Write::Fill {
            map: MapId::LookupTables,
            index: 0,
            word: 64,
            values: table,
        },
    ])?;
    add_backend(&balancer)?;
    add_vip(&balancer, 1)?;
    balancer.program.test_run(&syn(), 1)?;
    assert_eq!(balancer.counters.verdicts.of(Verdict::ForwardTx)?, 1);
    assert_eq!(balancer.counters.vips.sum(3)?.packets, 1);

    balancer.apply(&[Write::ZeroVipCounter(VipIndex(3))])?;
    assert_eq!(
        balancer
            .counters
            .vips
            .per_cpu(3)?
            .iter()
            .filter(|share| **share != Traffic::default())
            .count(),
        0
    );
    assert_eq!(balancer.counters.backends.sum(5)?.packets, 1);
    balancer.apply(&[Write::ZeroBackendCounter(BackendIndex(5))])?;
    assert_eq!(balancer.counters.backends.sum(5)?, Traffic::default());
    Ok(())
}
