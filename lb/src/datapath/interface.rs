//! Interface names and their indices, in the calling thread's network namespace.

use std::io;

use super::DatapathError;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The kernel's index of it.
    pub index: u32,
}

impl Interface {
    /// Looks an interface up by its name.
    ///
    /// # Errors
    ///
    /// [`DatapathError::NoInterface`].
    pub fn find(name: &str) -> Result<Self, DatapathError> {
        let index = nix::net::if_::if_nametoindex(name).map_err(|errno| DatapathError::NoInterface {
            interface: name.to_owned(),
            source: io::Error::from(errno),
        })?;
        Ok(Self {
            name: name.to_owned(),
            index,
        })
    }
}
