//! Which sockets live, and how they get into the map that XDP redirects through. Never keeps one alive: its owner says when it goes.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    os::fd::{AsRawFd as _, BorrowedFd, RawFd},
};

use super::{XskError, status::Place};

/// Puts a socket into the map: `(interface index, queue, socket)`.
pub type Register = dyn FnMut(u32, u32, BorrowedFd<'_>) -> Result<(), Box<dyn Error + Send + Sync>> + Send;

/// The live sockets.
pub(super) struct Registry {
    register: Box<Register>,
    live: BTreeMap<(u32, u32), (RawFd, String)>,
}

impl Registry {
    pub(super) fn new(register: Box<Register>) -> Self {
        Self {
            register,
            live: BTreeMap::new(),
        }
    }

    /// Puts a new socket into the map.
    pub(super) fn enter(&mut self, place: &Place, socket: BorrowedFd<'_>) -> Result<(), XskError> {
        let key = (place.interface.index, place.queue);
        let name = place.interface.name.clone();
        (self.register)(key.0, key.1, socket).map_err(|source| failed(&name, key.1, source))?;
        self.live.insert(key, (socket.as_raw_fd(), name));
        Ok(())
    }

    /// Before the socket is closed. The kernel takes it out of all maps itself.
    pub(super) fn leave(&mut self, place: &Place) {
        self.live.remove(&(place.interface.index, place.queue));
    }

    /// From now on, sockets go into another map; and all that live go there at once.
    pub(super) fn move_to(&mut self, register: Box<Register>) -> Result<(), XskError> {
        self.register = register;
        for (&(ifindex, queue), (socket, name)) in &self.live {
            // SAFETY: the socket's owner takes it out of `live`, under the lock that we are called with, before it closes it.
            let socket = unsafe { BorrowedFd::borrow_raw(*socket) };
            (self.register)(ifindex, queue, socket).map_err(|source| failed(name, queue, source))?;
        }
        Ok(())
    }
}

fn failed(interface: &str, queue: u32, source: Box<dyn Error + Send + Sync>) -> XskError {
    XskError::Register {
        interface: interface.to_owned(),
        queue,
        source,
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}
