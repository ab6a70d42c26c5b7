//! From an errno to what the operator of the node can do about it. Never decides whether something failed, only says
//! more.

use std::{fmt, fs, io};

/// A capability (capabilities(7)), by its bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Attaching to interfaces, loading network programs.
    NetAdmin = 12,
    /// All of the others together, for kernels and calls that know no finer one.
    SysAdmin = 21,
    /// Maps and programs.
    Bpf = 39,
}

impl Capability {
    /// As capabilities(7) and systemd.exec(5) write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Bpf => "CAP_BPF",
        }
    }
}

/// A kernel feature that a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// What it is.
    pub name: &'static str,
    /// First kernel that has it.
    pub since: (u32, u32),
}

/// Arrays that user space maps.
pub(crate) const MMAPABLE: Feature = Feature {
    name: "mappable arrays (BPF_F_MMAPABLE)",
    since: (5, 5),
};
/// Programs that see packets of several fragments.
pub(crate) const FRAGMENTS: Feature = Feature {
    name: "XDP fragments (BPF_F_XDP_HAS_FRAGS)",
    since: (5, 18),
};
/// Links of XDP programs.
pub(crate) const XDP_LINKS: Feature = Feature {
    name: "BPF links for XDP",
    since: (5, 9),
};

/// What to do about a failure. Displays as nothing or as `; …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Nothing known.
    None,
    /// These capabilities are missing.
    Missing(Vec<Capability>),
    /// Not permitted although the capabilities are there.
    Forbidden,
    /// The running kernel lacks a feature.
    KernelTooOld {
        /// What it lacks.
        feature: Feature,
        /// The running kernel's version.
        running: (u32, u32),
    },
    /// The kernel has no memory to give.
    Memory,
}

impl Advice {
    /// Advice for a call that failed with `error`, needs `capabilities`, and uses `feature`.
    pub(crate) fn for_call(error: &io::Error, capabilities: &[Capability], feature: Option<Feature>) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::for_denied(effective_capabilities(), capabilities),
            Some(libc::ENOMEM) => Self::Memory,
            Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::E2BIG) => match (feature, running_kernel()) {
                (Some(feature), Some(running)) if running < feature.since => Self::KernelTooOld { feature, running },
                (Some(_) | None, Some(_) | None) => Self::None,
            },
            Some(_) | None => Self::None,
        }
    }

    fn for_denied(effective: Option<u64>, needed: &[Capability]) -> Self {
        let has = |capability: Capability| effective.is_some_and(|set| set & 1 << capability as u8 != 0);
        let missing: Vec<_> = needed
            .iter()
            .copied()
            .filter(|&one| !has(one) && !has(Capability::SysAdmin))
            .collect();
        if missing.is_empty() {
            Self::Forbidden
        } else {
            Self::Missing(missing)
        }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Missing(capabilities) => {
                f.write_str("; run as root or with ")?;
                for (position, capability) in capabilities.iter().enumerate() {
                    f.write_str(if position == 0 { "" } else { " and " })?;
                    f.write_str(capability.name())?;
                }
                Ok(())
            }
            Self::Forbidden => f.write_str(
                "; the capabilities are there, so a container's seccomp profile, a security module or kernel lockdown \
                 forbids it (before Linux 5.11 also a low RLIMIT_MEMLOCK)",
            ),
            Self::KernelTooOld { feature, running } => write!(
                f,
                "; {} needs Linux {}.{} or later, this is {}.{}",
                feature.name, feature.since.0, feature.since.1, running.0, running.1
            ),
            Self::Memory => f.write_str("; maps count against the memory limit of this process's cgroup"),
        }
    }
}

/// The effective capability set of this thread; `None` where /proc is not there.
fn effective_capabilities() -> Option<u64> {
    let status = fs::read_to_string("/proc/thread-self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn running_kernel() -> Option<(u32, u32)> {
    parse_release(&fs::read_to_string("/proc/sys/kernel/osrelease").ok()?)
}

/// `6.18.44-fc` -> `(6, 18)`.
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::{Advice, Capability, FRAGMENTS, parse_release};

    #[test]
    fn the_missing_capabilities_are_named() {
        let only_net_admin = Some(1 << Capability::NetAdmin as u8);
        let advice = Advice::for_denied(only_net_admin, &[Capability::Bpf, Capability::NetAdmin]);
        assert_eq!(advice, Advice::Missing(vec![Capability::Bpf]));
        assert_eq!(advice.to_string(), "; run as root or with CAP_BPF");
        let both = Advice::for_denied(Some(0), &[Capability::Bpf, Capability::NetAdmin]);
        assert_eq!(both.to_string(), "; run as root or with CAP_BPF and CAP_NET_ADMIN");
    }

    #[test]
    fn sys_admin_stands_for_all_and_is_not_blamed() {
        let advice = Advice::for_denied(Some(1 << Capability::SysAdmin as u8), &[Capability::Bpf]);
        assert_eq!(advice, Advice::Forbidden);
    }

    #[test]
    fn an_old_kernel_is_told_by_its_version() {
        assert_eq!(parse_release("5.14.0-427.el9.x86_64\n"), Some((5, 14)));
        assert_eq!(parse_release("6.18.44-fc-v445"), Some((6, 18)));
        assert_eq!(parse_release("linux"), None);
        let advice = Advice::KernelTooOld {
            feature: FRAGMENTS,
            running: (5, 14),
        };
        assert!(advice.to_string().ends_with("needs Linux 5.18 or later, this is 5.14"));
    }
}
