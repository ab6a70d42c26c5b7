//! Interfaces and how programs attach to them.
//!
//! Never looks at the system: whether an interface exists is the daemon's to find out.

use std::{collections::BTreeMap, fmt, sync::Arc};

use xdp_prog::abi::MAX_PORTS;

use super::{
    Warning,
    problem::Problem,
    read::At,
    words::{Kind, Quoted},
};

/// Longest interface name in bytes: `IFNAMSIZ` without the closing zero (include/uapi/linux/if.h).
pub const MAX_INTERFACE_NAME_BYTES: usize = 15;

/// An interface to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// A name that the kernel could have given; whether it did is not known here.
    pub name: Arc<str>,
    /// How to attach.
    pub mode: AttachMode,
}

/// How an XDP program attaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// Native; generic where the driver refuses native, and then said loudly.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the kernel's receive path, after an `sk_buff` was made: slow, for tests and for drivers without XDP.
    Generic,
}

impl AttachMode {
    /// As configuration and output write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What should be said loudly of these interfaces.
pub(super) fn warnings(interfaces: &[Interface]) -> Vec<Warning> {
    let generic = interfaces.iter().filter(|interface| match interface.mode {
        AttachMode::Generic => true,
        AttachMode::Auto | AttachMode::Native => false,
    });
    generic
        .map(|interface| Warning::GenericMode {
            interface: interface.name.clone(),
        })
        .collect()
}

/// At least one interface, each once.
pub(super) fn interfaces(at: &At<'_>) -> Option<Vec<Interface>> {
    let items = at.list()?;
    if items.is_empty() {
        return at.fail(Problem::EmptyList {
            hint: "name at least one interface",
        });
    }
    let mut first_spots: BTreeMap<Arc<str>, String> = BTreeMap::new();
    let mut interfaces = Vec::new();
    for item in &items {
        let Some(interface) = interface(item) else { continue };
        match first_spots.get(&interface.name) {
            Some(first) => {
                item.note(Problem::DuplicateInterface {
                    name: interface.name.to_string(),
                    first: first.clone(),
                });
            }
            None => {
                first_spots.insert(interface.name.clone(), item.spot().to_string());
                interfaces.push(interface);
            }
        }
    }
    if items.len() > MAX_PORTS {
        return at.fail(Problem::TooManyInterfaces { count: items.len() });
    }
    Some(interfaces)
}

fn interface(at: &At<'_>) -> Option<Interface> {
    match at.kind() {
        Kind::Text => Some(Interface {
            name: interface_name(at)?,
            mode: AttachMode::Auto,
        }),
        Kind::Map => at.fields(|fields| {
            let name = fields.required("name").and_then(|at| interface_name(&at));
            let mode = fields.or("mode", AttachMode::Auto, |at| attach_mode(&at));
            Some(Interface {
                name: name?,
                mode: mode?,
            })
        }),
        found @ (Kind::Empty | Kind::Bool | Kind::Integer | Kind::Float | Kind::List | Kind::Tagged) => {
            at.fail(Problem::NeitherNameNor {
                found,
                what: "a map with `name` and `mode`",
            })
        }
    }
}

/// What `dev_valid_name` in net/core/dev.c takes.
fn interface_name(at: &At<'_>) -> Option<Arc<str>> {
    let name = at.text()?;
    let bad_char = |c: char| c.is_whitespace() || c.is_control() || c == '/' || c == ':';
    if name.is_empty() || name.len() > MAX_INTERFACE_NAME_BYTES || name.contains(bad_char) || matches!(name, "." | "..")
    {
        return at.fail(Problem::BadInterfaceName {
            value: Quoted::new(name),
        });
    }
    Some(name.into())
}

fn attach_mode(at: &At<'_>) -> Option<AttachMode> {
    match at.text()? {
        "auto" => Some(AttachMode::Auto),
        "native" => Some(AttachMode::Native),
        "generic" => Some(AttachMode::Generic),
        other => at.fail(Problem::NotOneOf {
            value: Quoted::new(other),
            allowed: &["auto", "native", "generic"],
        }),
    }
}
