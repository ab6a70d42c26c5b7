//! The eBPF wrapper (`xdp-prog/src/bin/bench.rs`): makes packets in the kernel and runs a target on each.
//!
//! Never knows what the target is. One wrapper serves floors and program, so what it costs itself falls out of the difference.

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{Array, MapData, PerCpuArray, ProgramArray},
    programs::{ProgramFd, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode, xdp::XdpLink},
};
use lb::datapath::Plain;
use zerocopy::{Immutable, IntoBytes};

#[expect(dead_code, reason = "each half needs its part of what both share")]
#[path = "../../../xdp-prog/src/bin/bench/params.rs"]
mod params;

pub(crate) use params::{FLOW_IDS, Params, choice, kind, target};

pub(crate) static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench"));

/// The loaded wrapper with its floors.
pub(crate) struct Wrapper {
    ebpf: Ebpf,
    params: Array<MapData, Plain<Params>>,
    flow_ids: Array<MapData, u32>,
    sunk: PerCpuArray<MapData, u64>,
    targets: ProgramArray<MapData>,
}

/// What came of one test run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Mean time of one packet through wrapper and target, in ns, by the kernel's own clock.
    pub(crate) ns: f64,
    /// What the target returned for the last packet: an `XDP_*` action.
    pub(crate) action: u32,
}

impl Wrapper {
    /// Loads wrapper and floors, with so many cache lines to pollute the caches from.
    pub(crate) fn load(polluting_lines: u32) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .map_max_entries("POLLUTION", polluting_lines.max(1))
            .load(OBJECT)
            .context("cannot load the benchmark's wrapper (root is needed: CAP_BPF, CAP_NET_ADMIN)")?;
        let mut take = |name| {
            ebpf.take_map(name)
                .with_context(|| format!("no map {name} in the wrapper's object"))
        };
        let params = Array::try_from(take("PARAMS")?)?;
        let flow_ids = Array::try_from(take("FLOW_IDS")?)?;
        let sunk = PerCpuArray::try_from(take("SUNK")?)?;
        let mut targets = ProgramArray::try_from(take("TARGETS")?)?;
        for name in ["bench_flows", "floor_tx", "floor_read", "floor_write", "sink"] {
            let program: &mut Xdp = ebpf
                .program_mut(name)
                .with_context(|| format!("no {name}"))?
                .try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        for (index, name) in [
            (target::FLOOR_TX, "floor_tx"),
            (target::FLOOR_READ, "floor_read"),
            (target::FLOOR_WRITE, "floor_write"),
        ] {
            targets.set(index, program(&ebpf, name)?.fd()?, 0)?;
        }
        Ok(Self {
            ebpf,
            params,
            flow_ids,
            sunk,
            targets,
        })
    }

    /// Chooses what [`target::PROGRAM`] jumps to. It must have been built with XDP fragments support, as the wrapper is.
    pub(crate) fn aim(&mut self, program: &ProgramFd) -> Result<()> {
        self.targets
            .set(target::PROGRAM, program, 0)
            .context("cannot put the program into the wrapper's jump table")
    }

    /// Sets the flows of [`choice::TABLE`]: up to [`FLOW_IDS`] numbers, repeated as often as they fit.
    pub(crate) fn set_flow_ids(&mut self, ids: &[u32]) -> Result<()> {
        for (index, id) in (0..FLOW_IDS as u32).zip(ids.iter().cycle()) {
            self.flow_ids.set(index, id, 0).context("FLOW_IDS")?;
        }
        Ok(())
    }

    /// Makes `repeat` packets and runs a target on each.
    pub(crate) fn run(&mut self, params: &Params, repeat: u32) -> Result<Run> {
        self.params.set(0, Plain(*params), 0).context("PARAMS")?;
        let options = TestRunOptions {
            data_in: Some(&[0; params::FRAME_LEN]),
            repeat,
            ..TestRunOptions::default()
        };
        let result = program(&self.ebpf, "bench_flows")?
            .test_run(options)
            .context("BPF_PROG_TEST_RUN of the wrapper")?;
        let made = self.params.get(&0, 0).context("PARAMS")?.0.packets - params.packets;
        ensure!(made == u64::from(repeat), "the wrapper made {made} packets of {repeat}");
        Ok(Run {
            ns: result.duration.as_secs_f64() * 1e9,
            action: result.return_value,
        })
    }

    /// Attaches one of the object's own programs to an interface of the calling thread's namespace; dropping the link detaches.
    pub(crate) fn attach(&mut self, name: &str, interface: &str) -> Result<XdpLink> {
        let program: &mut Xdp = self
            .ebpf
            .program_mut(name)
            .with_context(|| format!("no {name}"))?
            .try_into()?;
        let link = program
            .attach(interface, XdpMode::Driver)
            .with_context(|| format!("attach {name} to {interface}"))?;
        Ok(program.take_link(link)?)
    }

    /// Makes `packets` real packets, `batch` at a time, and sends them out of an interface of the calling thread's namespace.
    pub(crate) fn send(&mut self, params: &Params, packets: u32, batch: u32, ifindex: u32) -> Result<()> {
        self.params.set(0, Plain(*params), 0).context("PARAMS")?;
        let context = XdpMd {
            data_end: params::FRAME_LEN as u32,
            ingress_ifindex: ifindex,
            ..XdpMd::default()
        };
        let options = TestRunOptions {
            data_in: Some(&[0; params::FRAME_LEN]),
            ctx_in: Some(context.as_bytes()),
            repeat: packets,
            attrs: TestRunAttrs::new().xdp_live_frames(batch),
            ..TestRunOptions::default()
        };
        program(&self.ebpf, "bench_flows")?
            .test_run(options)
            .context("BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES")?;
        Ok(())
    }

    /// Packets that `sink` has dropped.
    pub(crate) fn sunk(&self) -> Result<u64> {
        Ok(self.sunk.get(&0, 0).context("SUNK")?.iter().sum())
    }
}

/// `struct xdp_md` (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default, IntoBytes, Immutable)]
struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

fn program<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a Xdp> {
    Ok(ebpf.program(name).with_context(|| format!("no {name}"))?.try_into()?)
}
