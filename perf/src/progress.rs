//! Where a benchmark is, on stderr: one line that changes on a terminal, a line per group elsewhere.

use std::{
    cell::RefCell,
    io::{IsTerminal as _, Write as _, stderr},
};

/// Says what is being measured.
pub(crate) struct Progress {
    terminal: bool,
    group: RefCell<String>,
}

impl Progress {
    /// On this process's stderr.
    pub(crate) fn new() -> Self {
        Self {
            terminal: stderr().is_terminal(),
            group: RefCell::default(),
        }
    }

    /// Something begins. A stderr that is gone is no reason to stop.
    pub(crate) fn at(&self, group: &str, what: &str) {
        if self.terminal {
            let _ = write!(stderr(), "\r\x1b[K{what}");
        } else if *self.group.borrow() != group {
            let _ = writeln!(stderr(), "measuring {group}");
            group.clone_into(&mut self.group.borrow_mut());
        }
    }

    /// Nothing more comes.
    pub(crate) fn done(&self) {
        if self.terminal {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}
