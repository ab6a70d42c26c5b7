//! Pins: what outlives its process, and going on with it. The file system is the test's own.

use anyhow::{Context as _, Result};
use lab::Bpffs;
use lb::datapath::{AttachMode, Attachment, Balancer, DatapathError, PinError, PinPlace, Pins, Record, holders};
use lb_core::plan::MapId;
use xdp_prog::{
    abi::{ABI_VERSION, Config, Traffic, VipIndex},
    verdict::Verdict,
};

use crate::{
    attach::wired,
    vip::{SMALL, add_vip, balancer, syn},
};

fn place(bpffs: &Bpffs) -> PinPlace {
    PinPlace {
        bpffs: bpffs.path(),
        instance: "test".to_owned(),
    }
}

/// The attachments that another process would go on with.
fn adopted(pins: &Pins) -> Result<Vec<Attachment>> {
    let generations = pins.generations()?;
    let links = pins.links()?.into_iter();
    let adopted = links.map(|link| link.adopt(&generations)?.ok().context("a program of ours"));
    adopted.collect()
}

#[test]
fn an_instance_is_one_processs_at_a_time_and_its_name_a_name() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bpffs = Bpffs::new()?;
    assert!(Pins::find(&place(&bpffs))?.is_none());
    let first = Pins::open(&place(&bpffs))?;
    for second in [Pins::open(&place(&bpffs)).map(Some), Pins::find(&place(&bpffs))] {
        assert!(matches!(second, Err(PinError::InUse { .. })), "{second:?}");
    }
    drop(first);
    drop(Pins::open(&place(&bpffs))?);
    for name in ["", "a.b", "a/b", "..", "ä", &"x".repeat(33)] {
        let instance = name.to_owned();
        let refused = Pins::open(&PinPlace {
            instance,
            ..place(&bpffs)
        });
        assert!(matches!(refused, Err(PinError::Name { .. })), "{name}: {refused:?}");
    }
    Ok(())
}

#[test]
fn what_was_pinned_is_gone_on_with_as_it_was_and_taken_away_whole() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let (ns, _far) = wired()?;
    let bpffs = Bpffs::new()?;
    ns.run(|| {
        let mut pins = Pins::open(&place(&bpffs))?;
        let mut first = balancer()?;
        first.slots.add_segment()?;
        add_vip(&first, 0)?;
        pins.install(&mut first)?;
        // Made after it was pinned: it joins.
        first.slots.add_segment()?;
        first.slots.store(200_000, 7)?;
        let traffic = Traffic { packets: 3, bytes: 180 };
        first.counters.passed.add_vip(VipIndex(1), traffic);
        first.program.test_run(&syn(), 1)?;
        let mut attachment = first.program.attach("lb0", AttachMode::Native)?;
        pins.keep(&mut attachment)?;
        let record = Record {
            config: Config::EMPTY,
            capacity: SMALL,
        };
        let (image, counted) = (first.image(&record)?, first.counters.of_verdicts()?);
        let program = holders("lb0")?;
        // As a process that ends.
        drop((first, attachment, pins));
        assert_eq!(holders("lb0")?, program);

        let mut pins = Pins::open(&place(&bpffs))?;
        let generations = pins.generations()?;
        let [generation] = &generations[..] else {
            anyhow::bail!("{generations:?}")
        };
        assert_eq!(
            (generation.abi, generation.program_id),
            (ABI_VERSION, program[0].program_id)
        );
        assert_eq!(Record::read(generation)?, Some(record));
        let mut second = Balancer::adopt(&record, generation)?;
        assert!(second.image(&record)? == image, "the maps are the same");
        assert_eq!(second.slots.segments(), 2);
        // The kernel's own packets (neighbour discovery) come whenever they like, and pass.
        let of_vips = |counts: Vec<(Verdict, u64)>| -> Vec<(Verdict, u64)> {
            counts
                .into_iter()
                .filter(|(verdict, _)| *verdict != Verdict::PassNotVip)
                .collect()
        };
        let counted = of_vips(counted);
        assert_eq!(of_vips(second.counters.of_verdicts()?), counted);
        assert_eq!(second.counters.of_vips(2)?[1], traffic);
        second.program.test_run(&syn(), 1)?;
        assert_ne!(
            of_vips(second.counters.of_verdicts()?),
            counted,
            "the control: it goes on counting"
        );
        assert_eq!(second.word(MapId::LookupTables, 1, 200_000 - 131_072)?, 7);
        let mut attachments = adopted(&pins)?;
        pins.install(&mut second)?;
        second.program.take_over(&mut attachments[0])?;
        pins.sweep()?;
        assert_eq!(pins.generations()?.len(), 1);
        assert_ne!(holders("lb0")?, program, "another program on the same maps");
        assert_eq!(holders("lb0")?.len(), 1);

        drop((second, attachments));
        let removed = pins.remove_all()?;
        assert_eq!(removed.interfaces, ["lb0"]);
        assert_eq!((removed.generations, removed.dead_links), (1, 0));
        assert_eq!(holders("lb0")?, []);
        assert!(Pins::find(&place(&bpffs))?.is_none());
        assert!(!bpffs.path().join("vipline").exists(), "nothing is left");
        Ok(())
    })
}

#[test]
fn what_is_not_whole_is_taken_away_and_what_is_missing_is_named() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bpffs = Bpffs::new()?;
    let mut pins = Pins::open(&place(&bpffs))?;
    let mut one = balancer()?;
    pins.install(&mut one)?;
    let versions = pins.directory().join(format!("v{ABI_VERSION}"));
    let unfinished = versions.join("unfinished");
    std::fs::create_dir(&unfinished)?;
    assert_eq!(pins.generations()?.len(), 1);
    assert!(!unfinished.exists());

    let generations = pins.generations()?;
    let record = Record {
        config: Config::EMPTY,
        capacity: SMALL,
    };
    drop(Balancer::adopt(&record, &generations[0])?);
    std::fs::remove_file(generations[0].directory().join("BACKENDS"))?;
    let refused = Balancer::adopt(&record, &generations[0]).err();
    assert!(
        matches!(&refused, Some(DatapathError::Map { map: "BACKENDS", .. })),
        "{refused:?}"
    );
    assert!(
        !generations[0].directory().join("BACKENDS").exists(),
        "nothing is made in its place"
    );
    Ok(())
}

#[test]
fn another_program_in_a_link_is_not_displaced() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let (ns, _far) = wired()?;
    let bpffs = Bpffs::new()?;
    ns.run(|| {
        let mut pins = Pins::open(&place(&bpffs))?;
        let (mut first, second, third) = (balancer()?, balancer()?, balancer()?);
        pins.install(&mut first)?;
        let mut attachment = first.program.attach("lb0", AttachMode::Native)?;
        pins.keep(&mut attachment)?;
        let mut stale = adopted(&pins)?;
        second.program.take_over(&mut attachment)?;
        let in_place = holders("lb0")?;
        let refused = third.program.take_over(&mut stale[0]).err();
        let Some(DatapathError::Link { source, .. }) = refused else {
            anyhow::bail!("{refused:?}")
        };
        assert_eq!(source.raw_os_error(), Some(libc::EPERM));
        assert_eq!(holders("lb0")?, in_place);
        // The twin: who knows what is in place may.
        third.program.take_over(&mut attachment)?;
        assert_ne!(holders("lb0")?, in_place);
        assert_eq!(first.counters.verdicts.of(Verdict::PassNotVip)?, 0);
        Ok(())
    })
}
