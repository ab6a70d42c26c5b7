//! What an earlier process left serving, and going on from it.
//!
//! Never takes anything away that packets go by.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::Context as _;
use lb_core::{
    config::{
        TransitConfig,
        reload::{ProgramChange, Refusal},
    },
    desired::{Desired, NextHops},
    drain::Drains,
};
use xdp_prog::abi::ABI_VERSION;

use super::tables::Tables;
use crate::{
    cli::report,
    datapath::{Attachment, Generation, PinPlace, PinnedLink, Pins, Record},
    source::file::LbFile,
};

/// How a daemon and what it puts in place belong together.
#[derive(Clone, Debug)]
pub struct Keeping {
    /// Where links and maps are pinned; `None`: they end with the process.
    pub place: Option<PinPlace>,
    /// Another seed than that of the VIPs that are served is taken, and their connections break.
    pub new_seed: bool,
    /// Where drains by an operator's word are kept, of a node that is told by a file.
    pub drains: PathBuf,
}

/// What there was.
#[derive(Default)]
pub(super) struct Left {
    /// Its links, with the programs that they run.
    pub(super) attachments: Vec<Attachment>,
    /// Links whose program is of a generation that is not whole any more.
    orphans: Vec<PinnedLink>,
    /// Its maps, if they can be read.
    tables: Option<Tables>,
    /// What they were made for, if they cannot be gone on with.
    record: Option<Record>,
}

/// The tables to serve from.
pub(super) struct Start {
    pub(super) tables: Tables,
    /// Those of the program in whose place they come, where they are not the same.
    pub(super) before: Option<Tables>,
}

impl Left {
    /// Looks through an instance's pins.
    ///
    /// # Errors
    ///
    /// When something is pinned that nobody of ours can have left.
    pub(super) fn find(pins: &Pins, desired: &Desired, transit: TransitConfig) -> anyhow::Result<Self> {
        let halves = pins.halves()?;
        let generations = pins.generations()?;
        let (mut serving, mut attachments, mut orphans) = (Vec::new(), Vec::new(), Vec::new());
        for link in pins.links()? {
            serving.push(link.program_id);
            match adopt(link, &generations)? {
                Adopted::Gone => {}
                Adopted::Whole(attachment) => attachments.push(attachment),
                Adopted::Orphan(link) if !halves.is_empty() => orphans.push(link),
                Adopted::Orphan(link) => anyhow::bail!(
                    "{} runs program {} at {}, which no generation beside it has: somebody else has put it there; `vipline \
                     detach` takes it away",
                    link.path().display(),
                    link.program_id,
                    name_of(&link)
                ),
            }
        }
        say_halves(&halves, &orphans);
        let serving: Vec<&Generation> = generations
            .iter()
            .filter(|generation| serving.contains(&generation.program_id))
            .collect();
        let ours = serving.iter().rfind(|generation| generation.abi == ABI_VERSION);
        let tables = match (ours, serving.last()) {
            (Some(ours), _) => adopt_tables(ours, desired, transit),
            (None, Some(foreign)) => {
                say_foreign(foreign);
                None
            }
            (None, None) => None,
        };
        let given_up = ours.filter(|_| tables.is_none());
        let record = given_up.and_then(|generation| Record::read(generation).ok().flatten());
        Ok(Self {
            attachments,
            orphans,
            tables,
            record,
        })
    }

    /// Names of interfaces that are served.
    pub(super) fn interfaces(&self) -> BTreeSet<String> {
        let kept = self.attachments.iter().map(|at| at.interface().name.clone());
        kept.chain(self.orphans.iter().map(name_of)).collect()
    }

    /// Links that nothing can be put in the place of: they are to be taken away when all else is ready.
    pub(super) fn take_orphans(&mut self) -> Vec<PinnedLink> {
        std::mem::take(&mut self.orphans)
    }

    /// Refuses another seed than that of the VIPs that are served.
    ///
    /// # Errors
    ///
    /// [`Refusal::SeedAtStart`].
    pub(super) fn check_seed(&self, file: &LbFile, new_seed: bool) -> Result<(), Refusal> {
        let (config, vips) = match (&self.tables, &self.record) {
            (Some(tables), _) => (tables.planner.config(), tables.planner.vips().count()),
            // Somebody is served, whoever it is.
            (None, Some(record)) => (&record.config, 1),
            (None, None) => return Ok(()),
        };
        if config.seed == file.seed.words() || vips == 0 {
            return Ok(());
        }
        if new_seed {
            tracing::warn!("the seed changes, as --new-seed asks for: connections break");
            return Ok(());
        }
        Err(Refusal::SeedAtStart)
    }

    /// Tables that say what is desired: those that are there, where they can; else new ones.
    ///
    /// # Errors
    ///
    /// When what is desired does not fit. What is there serves on as it is.
    pub(super) fn start(
        self,
        file: &LbFile,
        desired: &Desired,
        hops: &NextHops,
        drains: &Drains,
    ) -> anyhow::Result<(Start, Vec<Attachment>)> {
        let Self {
            attachments, tables, ..
        } = self;
        let Some(mut old) = tables else {
            let mut tables = Tables::load(file, 0, None)?;
            tables.drains.clone_from(drains);
            tables.reach(desired, hops)?;
            return Ok((Start { tables, before: None }, attachments));
        };
        old.drains.clone_from(drains);
        let why = old.differs(file);
        if why.is_empty() {
            match old.reach(desired, hops) {
                Ok(writes) => {
                    tracing::info!(writes, "goes on with the maps of the process before");
                    let start = Start {
                        tables: old,
                        before: None,
                    };
                    return Ok((start, attachments));
                }
                Err(error) => tracing::warn!(
                    "the maps of the process before cannot take what is desired, so new ones take their place: {}",
                    report(&error)
                ),
            }
        } else {
            let why: Vec<String> = why.iter().map(ToString::to_string).collect();
            tracing::info!(
                "new maps take the place of those of the process before: {}",
                why.join("; ")
            );
        }
        let mut tables = Tables::load(file, 0, Some(&old))?;
        if let Err(error) = tables.reach(desired, hops) {
            // With everybody who was there before it may be too many; what is desired alone must do.
            tracing::warn!(
                "flows of slots in transit are forgotten, for want of room: {}",
                report(&error)
            );
            tables = Tables::load(file, 0, None)?;
            tables.drains.clone_from(drains);
            tables.reach(desired, hops)?;
        }
        let start = Start {
            tables,
            before: Some(old),
        };
        Ok((start, attachments))
    }
}

/// What became of a link.
enum Adopted {
    /// Its interface is gone, and so is it.
    Gone,
    Whole(Attachment),
    /// No generation has its program.
    Orphan(PinnedLink),
}

fn name_of(link: &PinnedLink) -> String {
    link.interface
        .as_ref()
        .map_or_else(String::new, |interface| interface.name.clone())
}

/// Says what becomes of what is not whole.
fn say_halves(halves: &[PathBuf], orphans: &[PinnedLink]) {
    for half in halves {
        tracing::warn!(
            "{}: the pin of its program is gone, so its maps are nobody's: they are taken away",
            half.display()
        );
    }
    for orphan in orphans {
        tracing::warn!(
            "{}: its program (id {}) is of such a generation: it serves until all is ready, then goes, and a new program comes; \
             packets of the moment between are lost, counters begin anew, slots in transit and records of flows are forgotten, and \
             whether the seed is the same is not known",
            name_of(orphan),
            orphan.program_id
        );
    }
}

/// Goes on with a link; one whose interface is gone goes, too.
fn adopt(link: PinnedLink, generations: &[Generation]) -> anyhow::Result<Adopted> {
    let path = link.path().display().to_string();
    let Some(interface) = link.interface.clone() else {
        tracing::info!("{path} is left of an interface that is gone: it goes, too");
        link.remove()?;
        return Ok(Adopted::Gone);
    };
    anyhow::ensure!(
        link.mode.is_some(),
        "{path} keeps a program at interface number {} of another network namespace: give this daemon another --instance, or \
         `vipline detach` that one",
        interface.index
    );
    match link.adopt(generations)? {
        Ok(attachment) => Ok(Adopted::Whole(attachment)),
        Err(link) => Ok(Adopted::Orphan(link)),
    }
}

fn adopt_tables(generation: &Generation, desired: &Desired, transit: TransitConfig) -> Option<Tables> {
    let adopted =
        Tables::adopt(generation, desired, transit).with_context(|| generation.directory().display().to_string());
    match adopted {
        Ok(tables) => Some(tables),
        Err(error) => {
            tracing::warn!(
                "the maps of the process before cannot be gone on with, so new ones take their place, and counters begin anew: {}",
                report(&error)
            );
            None
        }
    }
}

/// A program whose maps mean something else.
fn say_foreign(generation: &Generation) {
    let what = if generation.abi > ABI_VERSION {
        "DOWNGRADE: a newer"
    } else {
        "upgrade: an older"
    };
    tracing::warn!(
        "{what} vipline serves from {} (map ABI {}, this one's is {ABI_VERSION}). Its maps cannot be read: new ones are filled and \
         take their place without a packet lost, tables have their least size and counters begin anew, and whether the seed is the \
         same is not known",
        generation.directory().display(),
        generation.abi
    );
}

impl Tables {
    /// What is fixed in the loaded program, or in its maps, and another for this configuration.
    fn differs(&self, file: &LbFile) -> Vec<ProgramChange> {
        let is = self.planner.config();
        let wanted = xdp_prog::abi::Config {
            // Whoever made the records chose it.
            flow_secret: is.flow_secret,
            ..Self::constants(file, 0, self.jiffies)
        };
        let mut why = Vec::new();
        if is.features != wanted.features {
            why.push(ProgramChange::Features {
                on: wanted.features & !is.features,
                off: is.features & !wanted.features,
            });
        }
        let masks = |config: &xdp_prog::abi::Config| (config.source_mask_v4, config.source_mask_v6);
        why.extend((masks(is) != masks(&wanted)).then_some(ProgramChange::SourceMask));
        why.extend((self.capacity != file.config.capacity).then_some(ProgramChange::Capacity));
        let records_differ = is.features == wanted.features && is.flow_mask != wanted.flow_mask;
        why.extend(records_differ.then_some(ProgramChange::FlowRecords));
        why.extend((is.seed != wanted.seed).then_some(ProgramChange::Seed));
        let names: Vec<&str> = file
            .config
            .interfaces
            .iter()
            .map(|interface| &*interface.name)
            .collect();
        why.extend((!self.balancer.ports.are(&names)).then_some(ProgramChange::Interfaces));
        // Whatever else an earlier version of this one may have fixed.
        why.extend((why.is_empty() && *is != wanted).then_some(ProgramChange::Constants));
        why
    }
}
