//! Everything that is wrong with a file, as it is printed.
//!
//! Never unbounded: so many errors are kept, fewer printed, all counted.

use std::fmt;

use thiserror::Error;

use super::problem::Problem;

/// Errors kept of one file; the rest are counted.
pub const MAX_KEPT_ERRORS: usize = 1000;
/// Errors that [`ConfigErrors`] prints; the rest are counted.
pub const MAX_PRINTED_ERRORS: usize = 100;
/// Everything that is wrong with a file, in the order of the file. Never empty.
///
/// Displays as one error per line and a last line with their number, no newline at the end.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct ConfigErrors {
    /// At most [`MAX_KEPT_ERRORS`].
    pub errors: Vec<ConfigError>,
    /// Errors beyond those.
    pub omitted: usize,
}

impl ConfigErrors {
    /// A file with nothing but this wrong.
    pub(super) fn one(error: ConfigError) -> Self {
        Self {
            errors: vec![error],
            omitted: 0,
        }
    }

    /// Number of errors, omitted ones included.
    pub fn count(&self) -> usize {
        self.errors.len() + self.omitted
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in self.errors.iter().take(MAX_PRINTED_ERRORS) {
            writeln!(f, "{error}")?;
        }
        let unprinted = self.count() - self.errors.len().min(MAX_PRINTED_ERRORS);
        if unprinted > 0 {
            writeln!(f, "… and {unprinted} more")?;
        }
        let count = self.count();
        write!(f, "{count} error{}", if count == 1 { "" } else { "s" })
    }
}

/// One thing that is wrong. Displays as `vips[2].port: 0 is not in 1..=65535 (line 7, column 11)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where, as `vips[2].backends[0].weight`; empty for the file as a whole.
    pub path: String,
    /// Where in the text; known for the first errors of a file that is not huge.
    pub place: Option<Place>,
    /// What, and what to do.
    pub problem: Problem,
}

/// A position in the text, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "{}", self.problem)?;
        match self.place {
            Some(Place { line, column }) => write!(f, " (line {line}, column {column})"),
            None => Ok(()),
        }
    }
}
