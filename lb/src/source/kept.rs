//! Files that a daemon keeps for its next start.
//!
//! Never written in place: who reads finds the old one or the new one, whole; and for root only.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Puts a file in the place of the one that is there, and makes its directory where there is none.
///
/// # Errors
///
/// What the system says.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if parent == Path::new("") => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    // One that is there may have another's mode.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

    use super::replace;

    #[test]
    fn a_file_is_replaced_whole_and_is_for_root_only_also_by_a_relative_path() {
        let directory = tempfile::tempdir_in(".").unwrap();
        let relative = Path::new(directory.path().file_name().unwrap()).join("kept.json");
        for text in ["one", "two"] {
            replace(&relative, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&relative).unwrap(), text);
        }
        assert_eq!(fs::metadata(&relative).unwrap().permissions().mode() & 0o777, 0o600);
        // A name alone: its directory is the one that one is in.
        let name = format!("{}.json", directory.path().file_name().unwrap().display());
        replace(Path::new(&name), b"three").unwrap();
        assert_eq!(fs::read_to_string(&name).unwrap(), "three");
        fs::remove_file(&name).unwrap();
    }
}
