//! Packets per second through a veth pair, end to end on one CPU: made in the kernel (`BPF_F_TEST_XDP_LIVE_FRAMES`), sent out of
//! one end, received by the balancer at the other, sent back, and dropped where they came from.
//!
//! Never a figure of the balancer alone: the generator, two veth crossings and the receiver of what comes back run on the same
//! CPU. So it stands beside the same path with a bare drop and with a bare `XDP_TX` in the balancer's place. Packets are counted
//! where they come back.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use lab::{End, Netns, Veth};
use lb::datapath::{AttachMode, Balancer};
use serde::{Deserialize, Serialize};
use xdp_prog::verdict::Verdict;

use super::{measure, rows::Row, wrapper::Wrapper};
use crate::stats::Summary;

/// Frames that the kernel makes before it lets the receiver run.
const BATCH: u32 = 64;
const GENERATOR: &str = "generator";
const BALANCER: &str = "balancer";

/// What stands at the receiving end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Receiver {
    /// `XDP_DROP`: what generator and one crossing cost.
    Drop,
    /// `XDP_TX`: both crossings.
    Tx,
    /// The balancer.
    Balancer,
}

/// Packets per second with one receiver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Live {
    /// What was at the receiving end.
    pub(crate) receiver: Receiver,
    /// What was sent.
    pub(crate) traffic: String,
    /// Million packets a second that came to their end.
    pub(crate) mpps: Summary,
    /// Share of the packets that came to their end: veth drops what its ring does not hold.
    pub(crate) delivered: f64,
}

/// Measures all receivers in turns.
pub(crate) fn measure(
    wrapper: &mut Wrapper,
    balancer: &Balancer,
    row: &Row,
    effort: measure::Effort,
) -> Result<Vec<Live>> {
    let (near, far) = (Netns::new("generator")?, Netns::new("balancer")?);
    for ns in [&near, &far] {
        // No neighbour discovery of the kernel's own among what is counted.
        ns.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    }
    let end = |ns: &Netns, name: &str, last| End {
        ns: ns.clone(),
        name: name.to_owned(),
        mac: [2, 0, 0, 0, 0, last],
        v4: None,
        v6: None,
    };
    let _pair = Veth::new(end(&near, GENERATOR, 2), end(&far, BALANCER, 1), 1_500, 1)?;
    let sink = near.run(|| wrapper.attach("sink", GENERATOR))?;
    let ifindex = near.run(|| ifindex(GENERATOR))?;
    let receivers = [Receiver::Drop, Receiver::Tx, Receiver::Balancer];
    let mut rates: [Vec<f64>; 3] = Default::default();
    let (mut sent, mut arrived) = ([0_u64; 3], [0_u64; 3]);
    let packets = effort.repeat.max(BATCH);
    for turn in 0..effort.runs {
        for (position, receiver) in receivers.into_iter().enumerate() {
            let _attached: Box<dyn std::any::Any> = match receiver {
                Receiver::Drop => Box::new(far.run(|| wrapper.attach("sink", BALANCER))?),
                Receiver::Tx => Box::new(far.run(|| wrapper.attach("floor_tx", BALANCER))?),
                Receiver::Balancer => Box::new(far.run(|| Ok(balancer.program.attach(BALANCER, AttachMode::Native)?))?),
            };
            let before = (wrapper.sunk()?, balancer.counters.verdicts.of(row.verdict)?);
            let start = Instant::now();
            let params = measure::live_params(row, u64::from(turn) * u64::from(packets));
            near.run(|| wrapper.send(&params, packets, BATCH, ifindex))?;
            let took = start.elapsed();
            let came = wrapper.sunk()? - before.0;
            let balanced = balancer.counters.verdicts.of(row.verdict)? - before.1;
            ensure!(came > 0, "no packet came back from {receiver:?}");
            ensure!(
                (receiver == Receiver::Balancer) == (balanced > 0) && (balanced == 0 || balanced >= came),
                "{came} packets came back, the balancer counted {balanced} {}",
                row.verdict.reason()
            );
            rates[position].push(came as f64 / took.as_secs_f64() / 1e6);
            sent[position] += u64::from(packets);
            arrived[position] += came;
        }
    }
    drop(sink);
    ensure!(row.verdict == Verdict::ForwardTx, "live rows are of forwarded packets");
    receivers
        .into_iter()
        .enumerate()
        .map(|(position, receiver)| {
            Ok(Live {
                receiver,
                traffic: row.name.clone(),
                mpps: Summary::of(&rates[position]).context("no runs")?,
                delivered: arrived[position] as f64 / sent[position] as f64,
            })
        })
        .collect()
}

fn ifindex(name: &str) -> Result<u32> {
    Ok(nix::net::if_::if_nametoindex(name)?)
}
