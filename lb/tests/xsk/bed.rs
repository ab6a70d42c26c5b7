//! Two namespaces, veth pairs between them, the redirecting program, and workers with an obedient handler.

#![expect(clippy::unwrap_used, reason = "a panic is what a test wants of what cannot be")]

use std::{
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, XskMap},
    programs::{Xdp, XdpMode},
};
use lab::{End, Netns, RawSocket, Veth, program};
use lb::xsk::{Handler, Register, SlowPath, Tally, ToKernel, WorkerStatus, XskError, XskInterface, XskSettings};
use lb_core::slow::{Event, Input, Output, To};
use xdp_prog::{abi::BackendIndex, verdict::Verdict};

/// Ethertype of frames that the program redirects.
pub(crate) const TO_XSK: [u8; 2] = [0x88, 0xb5];
/// Ethertype of frames that the program sends back itself.
pub(crate) const REFLECTED: [u8; 2] = [0x88, 0xb6];
/// Verdict byte of a frame that gets no metadata.
pub(crate) const BARE: u8 = 0xff;

/// What the handler does with a frame: the byte behind the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Op {
    /// Remembers it.
    Keep = 0,
    /// Sends it back.
    Echo = 1,
    /// Sends it out of the other interface.
    Cross = 2,
    /// Panics.
    Panic = 3,
    /// Sends it to an interface that is not there.
    Nowhere = 4,
    /// Says that a next hop is wanted.
    Event = 5,
    /// Sends the packet behind the head of the frame to the kernel.
    Kernel = 6,
    /// Sends it back three times as long.
    Grow = 7,
    /// Sends it back [`BURST`] times.
    Burst = 8,
    /// Sends it out of the other interface [`BURST`] times.
    CrossBurst = 9,
}

/// More than an inbox or the half of a small queue holds.
pub(crate) const BURST: usize = 1000;

pub(crate) const HEAD: usize = 20;

/// A frame for the handler: MAC addresses, ethertype, verdict, operation, number, payload.
pub(crate) fn frame(ethertype: [u8; 2], verdict: u8, op: Op, number: u32, len: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(len.max(HEAD));
    frame.extend(NODE_MAC);
    frame.extend(PEER_MAC);
    frame.extend(ethertype);
    frame.extend([verdict, op as u8]);
    frame.extend(number.to_be_bytes());
    while frame.len() < len {
        frame.push((frame.len() * 7 + number as usize) as u8);
    }
    frame
}

/// The frame as it should come back.
pub(crate) fn swapped(mut frame: Vec<u8>) -> Vec<u8> {
    let (destination, source) = frame.split_at_mut(6);
    destination.swap_with_slice(&mut source[..6]);
    frame
}

const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// What a handler saw: interface index, queue, verdict, frame.
pub(crate) type Seen = (u32, u32, Verdict, Vec<u8>);

struct Obedient {
    ifindex: u32,
    queue: u32,
    other: Option<u32>,
    seen: mpsc::Sender<Seen>,
    turns: mpsc::Sender<(u32, u64)>,
    deadline: Arc<Mutex<Option<u64>>>,
}

impl Handler for Obedient {
    fn batch(&mut self, _now_ns: u64, inputs: &[Input<'_>], output: &mut Output) {
        for input in inputs {
            let frame = input.frame;
            let is = |op: Op| frame.get(15) == Some(&(op as u8));
            if is(Op::Keep) {
                let _ = self
                    .seen
                    .send((self.ifindex, self.queue, input.verdict, frame.to_vec()));
            } else if is(Op::Echo) {
                output.send(To::Interface(self.ifindex), swapped(frame.to_vec()));
            } else if is(Op::Cross) {
                output.send(To::Interface(self.other.unwrap()), swapped(frame.to_vec()));
            } else if is(Op::Panic) {
                std::panic::resume_unwind(Box::new("the frame said so"));
            } else if is(Op::Nowhere) {
                output.send(To::Interface(9999), frame.to_vec());
            } else if is(Op::Event) {
                output.events.push(Event::NextHopWanted(BackendIndex(7)));
            } else if is(Op::Kernel) {
                output.send(To::Kernel, frame[HEAD..].to_vec());
            } else if is(Op::Burst) || is(Op::CrossBurst) {
                let to = if is(Op::Burst) {
                    self.ifindex
                } else {
                    self.other.unwrap()
                };
                let back = swapped(frame.to_vec());
                (0..BURST).for_each(|_| output.send(To::Interface(to), back.clone()));
            } else if is(Op::Grow) {
                output.send(To::Interface(self.ifindex), grown(frame));
            }
        }
    }

    fn turn(&mut self, now_ns: u64, _output: &mut Output) {
        *self.deadline.lock().unwrap() = None;
        let _ = self.turns.send((self.queue, now_ns));
    }

    fn deadline(&self) -> Option<u64> {
        *self.deadline.lock().unwrap()
    }
}

/// Three times the frame, as it comes back.
pub(crate) fn grown(frame: &[u8]) -> Vec<u8> {
    let mut long = swapped(frame.to_vec());
    long.extend_from_slice(frame);
    long.extend_from_slice(frame);
    long
}

/// Fields drop in this order: workers first, namespaces last.
pub(crate) struct Bed {
    pub(crate) path: SlowPath,
    pub(crate) seen: mpsc::Receiver<Seen>,
    pub(crate) turns: mpsc::Receiver<(u32, u64)>,
    pub(crate) deadline: Arc<Mutex<Option<u64>>>,
    pub(crate) interfaces: Vec<XskInterface>,
    /// The peers' ends of the wires.
    pub(crate) wires: Vec<RawSocket>,
    pub(crate) wiring: Wiring,
}

/// Namespaces and programs.
pub(crate) struct Wiring {
    programs: Vec<Ebpf>,
    _passes: program::Attached,
    pub(crate) node: Netns,
    pub(crate) peer: Netns,
}

/// How the bed is made.
pub(crate) struct Plan {
    pub(crate) interfaces: usize,
    pub(crate) mtu: u32,
    pub(crate) queues: u32,
    /// Of the node's ends.
    pub(crate) tx_queues: Option<u32>,
    pub(crate) xdp: XdpMode,
    pub(crate) settings: XskSettings,
    pub(crate) tun: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            interfaces: 1,
            mtu: 1500,
            queues: 1,
            tx_queues: None,
            xdp: XdpMode::Driver,
            settings: XskSettings::default(),
            tun: false,
        }
    }
}

pub(crate) fn iface(number: usize) -> String {
    format!("n{number}")
}

impl Wiring {
    pub(crate) fn new(plan: &Plan) -> Result<Self> {
        let (node, peer) = (Netns::new("node")?, Netns::new("peer")?);
        let mut programs = Vec::new();
        let names: Vec<_> = (0..plan.interfaces).map(|number| format!("p{number}")).collect();
        for (number, peer_name) in names.iter().enumerate() {
            let end = |ns: &Netns, name: String, mac| End {
                ns: ns.clone(),
                name,
                mac,
                v4: None,
                v6: None,
            };
            let a = end(&node, iface(number), NODE_MAC);
            Veth::new(a, end(&peer, peer_name.clone(), PEER_MAC), plan.mtu, plan.queues)?;
            if let Some(queues) = plan.tx_queues {
                node.sh(&format!("ethtool -L {} tx {queues}", iface(number)))?;
            }
            let mut loaded = EbpfLoader::new().btf(None).load(program::OBJECT)?;
            let xdp: &mut Xdp = loaded.program_mut("to_xsk").context("to_xsk")?.try_into()?;
            xdp.load()?;
            node.run(|| Ok(xdp.attach(&iface(number), plan.xdp)?))?;
            programs.push(loaded);
        }
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let passes = program::pass(&peer, &names)?;
        Ok(Self {
            programs,
            _passes: passes,
            node,
            peer,
        })
    }

    /// The interfaces, as the node's namespace has them.
    pub(crate) fn interfaces(&self) -> Result<Vec<XskInterface>> {
        self.node.run(|| {
            Ok((0..self.programs.len())
                .map(|n| XskInterface::find(&iface(n)))
                .collect::<Result<_, _>>()?)
        })
    }

    /// Puts sockets into the maps of the programs.
    pub(crate) fn register(&mut self) -> Result<Box<Register>> {
        let interfaces = self.interfaces()?;
        let maps: Vec<XskMap<MapData>> = self
            .programs
            .iter_mut()
            .map(|program| Ok(XskMap::try_from(program.take_map("TEST_XSKS").context("TEST_XSKS")?)?))
            .collect::<Result<_>>()?;
        let mut maps: Vec<_> = interfaces.iter().map(|interface| interface.index).zip(maps).collect();
        Ok(Box::new(move |ifindex: u32, queue: u32, socket: BorrowedFd<'_>| {
            let map = maps
                .iter_mut()
                .find(|(index, _)| *index == ifindex)
                .ok_or("no such interface")?;
            Ok(map.1.set(queue, socket, 0)?)
        }))
    }
}

/// Starts workers in the wiring's namespace.
pub(crate) fn start(
    wiring: &Wiring,
    settings: XskSettings,
    make: Box<lb::xsk::MakeHandler>,
    register: Box<Register>,
    tun: bool,
) -> Result<SlowPath> {
    let interfaces = wiring.interfaces()?;
    wiring.node.run(|| {
        let tun = tun.then(Arc::<ToKernel>::default);
        Ok(SlowPath::start(settings, &interfaces, make, register, tun)?)
    })
}

impl Bed {
    pub(crate) fn new(plan: Plan) -> Result<Self> {
        let mut wiring = Wiring::new(&plan)?;
        let interfaces = wiring.interfaces()?;
        for interface in &interfaces {
            ensure!(
                interface.mac == NODE_MAC && interface.rx_queues == plan.queues,
                "{interface:?}"
            );
        }
        let (seen_sender, seen) = mpsc::channel();
        let (turn_sender, turns) = mpsc::channel();
        let deadline = Arc::new(Mutex::new(None));
        let indices: Vec<u32> = interfaces.iter().map(|interface| interface.index).collect();
        let senders = Mutex::new((seen_sender, turn_sender, Arc::clone(&deadline)));
        let make = move |interface: &XskInterface, queue: u32| -> Box<dyn Handler> {
            let (seen, turns, deadline) = senders.lock().unwrap().clone();
            Box::new(Obedient {
                ifindex: interface.index,
                queue,
                other: indices.iter().copied().find(|index| *index != interface.index),
                seen,
                turns,
                deadline,
            })
        };
        let register = wiring.register()?;
        let path = start(&wiring, plan.settings, Box::new(make), register, plan.tun)?;
        let wires = (0..interfaces.len())
            .map(|number| RawSocket::open(&wiring.peer, &format!("p{number}")))
            .collect::<Result<_>>()?;
        Ok(Self {
            path,
            seen,
            turns,
            deadline,
            interfaces,
            wires,
            wiring,
        })
    }

    /// The next packet that a handler kept.
    pub(crate) fn kept(&self) -> Result<Seen> {
        Ok(self.seen.recv_timeout(WAIT)?)
    }

    /// A frame that comes out of an interface within a while.
    pub(crate) fn comes_out(&self, wire: usize, wanted: &[u8]) -> Result<()> {
        let found = self.wires[wire].next(WAIT, |frame| frame == wanted)?;
        ensure!(
            found.is_some(),
            "the frame did not come out of n{wire}: {:#?}",
            self.path.status()
        );
        Ok(())
    }

    /// One of the counts, over all workers.
    pub(crate) fn tally(&self, tally: Tally) -> u64 {
        self.path.status().iter().map(|worker| worker.tally(tally)).sum()
    }

    /// Waits until it holds of the workers.
    pub(crate) fn until(&self, what: &str, holds: impl Fn(&[WorkerStatus]) -> bool) -> Result<()> {
        let end = Instant::now() + WAIT;
        while !holds(&self.path.status()) {
            ensure!(
                Instant::now() < end,
                "never {what}: {:#?} {:?}",
                self.path.status(),
                self.path.groups()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Frames that are free, with the kernel or on their way, and all there are.
    pub(crate) fn frames(&self) -> (u32, u32) {
        let groups = self.path.groups();
        let held: u32 = self
            .path
            .status()
            .iter()
            .map(|worker| worker.posted + worker.sending)
            .sum();
        (
            held + groups.iter().map(|group| group.free).sum::<u32>(),
            groups.iter().map(|group| group.frames).sum(),
        )
    }
}

pub(crate) const WAIT: Duration = Duration::from_secs(5);

/// Whether a start failed as expected.
pub(crate) fn refused(result: Result<SlowPath>) -> Result<XskError> {
    match result {
        Ok(_) => anyhow::bail!("it started"),
        Err(error) => Ok(error.downcast()?),
    }
}
