//! `vipline detach`: the end of a data plane that outlives its daemons.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use lb_core::nexthop::Settings;
use tokio::time::timeout;

use super::unclaimed::{Priority, Unclaimed};
use crate::{
    datapath::{PinPlace, Pins, Removed},
    nexthop::NextHopDriver,
};

/// Longest wait for the kernel to list its neighbours.
const PATIENCE: Duration = Duration::from_secs(5);

/// Takes away what an instance has in place: programs, links, maps, and, where no other instance is left, the policy rules and kept
/// neighbours of the LB node's role. Returns what went, a line each; none where there was nothing.
///
/// # Errors
///
/// [`crate::datapath::PinError::InUse`] while its daemon is alive; when something does not go.
pub fn detach(place: &PinPlace) -> anyhow::Result<Vec<String>> {
    super::runtime()?.block_on(async {
        let mut lines = Vec::new();
        // Where nothing is pinned, rules and neighbours are a living daemon's that pins nothing, or go at the next start.
        let Some(pins) = Pins::find(place)? else {
            return Ok(lines);
        };
        let directory = pins.directory().display().to_string();
        let removed = pins.remove_all()?;
        lines.extend(say(&removed, &directory));
        if other_instances(place) {
            lines.push("rules and neighbours stay: another instance is in place".to_owned());
            return Ok(lines);
        }
        let rules = Unclaimed::new(Priority::Lb).await?;
        let count = rules.count();
        rules.remove_all().await?;
        lines.extend((count > 0).then(|| format!("removed {count} policy rules")));
        release_neighbours().await?;
        Ok(lines)
    })
}

fn say(removed: &Removed, directory: &str) -> Vec<String> {
    let mut lines: Vec<String> = removed
        .interfaces
        .iter()
        .map(|interface| format!("detached {interface}"))
        .collect();
    let Removed {
        dead_links,
        generations,
        pins,
        ..
    } = removed;
    lines.extend((*dead_links > 0).then(|| format!("removed {dead_links} links of interfaces that are gone")));
    lines.extend((*generations > 0).then(|| format!("removed {generations} programs with their maps")));
    lines.push(format!("removed {directory} ({pins} pins)"));
    lines
}

fn other_instances(place: &PinPlace) -> bool {
    let root = place.bpffs.join("vipline");
    std::fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_some())
}

/// Lets the neighbour entries go that the kernel was asked to keep: a driver without backends does, when it ends.
async fn release_neighbours() -> anyhow::Result<()> {
    let (driver, mut view) = NextHopDriver::start(Settings::default(), BTreeMap::new())?;
    timeout(PATIENCE, view.wait_for(|view| view.complete))
        .await
        .context("the kernel did not list its neighbours in time")?
        .context("next hops are no longer followed")?;
    drop(driver);
    Ok(())
}
