//! The test bed's own XDP and tc programs (`xdp-prog/src/bin/testbed.rs`), loaded and attached inside namespaces.

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    programs::{SchedClassifier, TcAttachType, Xdp, XdpMode},
};

use crate::Netns;

/// The test bed's object file.
pub static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/testbed"));

const TPID_8021Q: u16 = 0x8100;
const TPID_8021AD: u16 = 0x88a8;

/// VLAN tags of a link, by VLAN id (1 to 4094).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VlanTags {
    /// 802.1Q.
    One(u16),
    /// QinQ: an 802.1ad tag (0x88a8) outside, an 802.1Q tag inside.
    Two {
        /// Outer VLAN id.
        outer: u16,
        /// Inner VLAN id.
        inner: u16,
    },
}

impl VlanTags {
    /// The tags as they stand on the wire between the hardware addresses and the ethertype.
    #[must_use]
    pub fn bytes(self) -> Vec<u8> {
        self.words().into_iter().flat_map(u32::to_be_bytes).collect()
    }

    /// How long they are.
    #[must_use]
    pub fn len_bytes(self) -> u32 {
        match self {
            Self::One(_) => 4,
            Self::Two { .. } => 8,
        }
    }

    /// TPID and TCI of each tag, outermost first.
    fn words(self) -> Vec<u32> {
        let tag = |tpid: u16, id: u16| u32::from(tpid) << 16 | u32::from(id);
        match self {
            Self::One(id) => vec![tag(TPID_8021Q, id)],
            Self::Two { outer, inner } => vec![tag(TPID_8021AD, outer), tag(TPID_8021Q, inner)],
        }
    }
}

/// Attached programs; detached on drop.
#[derive(Debug)]
pub struct Attached {
    _programs: Ebpf,
}

/// Attaches XDP `pass`, natively: a veth interface takes the frames that its peer sends by XDP only if it has a program itself.
///
/// # Errors
///
/// The verifier's and bpf(2)'s.
pub fn pass(ns: &Netns, ifaces: &[&str]) -> Result<Attached> {
    xdp(ns, ifaces, "pass")
}

/// Attaches XDP `reflect`, natively: every frame goes back where it came from, hardware addresses swapped, the rest as the program
/// saw it.
///
/// # Errors
///
/// The verifier's and bpf(2)'s.
pub fn reflect(ns: &Netns, ifaces: &[&str]) -> Result<Attached> {
    xdp(ns, ifaces, "reflect")
}

/// Makes each of these interfaces what a VLAN device would be to its namespace: the kernel's frames leave with the tags, and only
/// frames with exactly these tags come in, without them. XDP runs before this and sees the tags in the packet.
///
/// # Errors
///
/// The verifier's and bpf(2)'s.
pub fn vlan(ends: &[(&Netns, &str)], tags: VlanTags) -> Result<Attached> {
    let words = tags.words();
    let outer = words[0];
    let inner = words.get(1).copied().unwrap_or(0);
    let mut programs = EbpfLoader::new()
        .btf(None)
        .override_global("OUTER_TAG", &outer, true)
        .override_global("INNER_TAG", &inner, true)
        .load(OBJECT)
        .context("load the test bed's object")?;
    for (name, hook) in [("vlan_push", TcAttachType::Egress), ("vlan_pop", TcAttachType::Ingress)] {
        let program: &mut SchedClassifier = programs
            .program_mut(name)
            .with_context(|| format!("no program {name}"))?
            .try_into()?;
        program.load().with_context(|| format!("load {name}"))?;
        for (ns, iface) in ends {
            ns.run(|| {
                program
                    .attach(iface, hook)
                    .map(drop)
                    .with_context(|| format!("attach {name} to {iface} in {}", ns.name()))
            })?;
        }
    }
    Ok(Attached { _programs: programs })
}

fn xdp(ns: &Netns, ifaces: &[&str], name: &str) -> Result<Attached> {
    // Without reading the kernel's types (0.2 s in a debug build): these programs relocate nothing against them.
    let mut programs = EbpfLoader::new()
        .btf(None)
        .load(OBJECT)
        .context("load the test bed's object")?;
    let program: &mut Xdp = programs
        .program_mut(name)
        .with_context(|| format!("no program {name}"))?
        .try_into()?;
    program.load().with_context(|| format!("load {name}"))?;
    ns.run(|| {
        for iface in ifaces {
            program
                .attach(iface, XdpMode::Driver)
                .with_context(|| format!("attach {name} to {iface} in {}", ns.name()))?;
        }
        Ok(())
    })?;
    Ok(Attached { _programs: programs })
}
