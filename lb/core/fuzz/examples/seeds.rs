//! Writes bytes to start fuzzing from: `seeds DIRECTORY`, one directory for each target in it. The same with every run.

use std::{env, fs, io, path::Path};

use lb_core_fuzz::targets::ALL;

/// Files per target, before those that reach nothing new are left out (`-merge=1`).
const FILES: u64 = 2000;

fn main() -> io::Result<()> {
    let directory = env::args_os().nth(1).ok_or(io::ErrorKind::InvalidInput)?;
    for (name, _) in ALL {
        let directory = Path::new(&directory).join(name);
        fs::create_dir_all(&directory)?;
        for file in 0..FILES {
            fs::write(directory.join(format!("seed{file}")), bytes(file))?;
        }
    }
    Ok(())
}

/// Bytes most of which are small, because most choices are among few.
fn bytes(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    };
    let len = 8 + next() % 120;
    (0..len)
        .map(|_| match next() % 4 {
            0 => next() as u8,
            _ => next() as u8 & 0x0f,
        })
        .collect()
}
