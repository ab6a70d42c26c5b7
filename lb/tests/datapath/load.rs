//! Loading: the verifier takes both objects, with everything off and with everything on.

use anyhow::Result;
use lb::datapath::{Balancer, DatapathError, Decapsulator};
use xdp_prog::abi::{Config, feature};

use crate::vip::{SMALL, XDP_PASS, balancer, syn};

#[test]
fn both_programs_load_with_any_features() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for features in [0, feature::ALL]
        .into_iter()
        .chain((0..64).map(|bit| 1 << bit).take_while(|f| f & feature::ALL != 0))
    {
        let config = Config {
            features,
            match_mask_v4: 255,
            match_mask_v6: 255,
            ..Config::EMPTY
        };
        let facts = Balancer::load(&config, &SMALL)?.program.facts()?;
        assert!(
            facts.jited_len > 0 && facts.xlated_len > 0 && facts.verified_insns > 0,
            "{facts:?}"
        );
        println!("lb features {features:#05x}: {facts:?}");
    }
    println!("decap: {:?}", Decapsulator::load(&Config::EMPTY, 64)?.program.facts()?);
    Ok(())
}

#[test]
fn a_program_that_was_just_loaded_passes_everything() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let balancer = balancer()?;
    let run = balancer.program.test_run(&syn(), 1)?;
    assert_eq!((run.retval, run.data_out), (XDP_PASS, syn()));
    let decapsulator = Decapsulator::load(&Config::EMPTY, 1)?;
    assert_eq!(decapsulator.program.test_run(&syn(), 1)?.retval, XDP_PASS);
    Ok(())
}

#[test]
fn without_privileges_the_missing_capability_is_named() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    // Capabilities are a thread's own: this one drops all of them and is gone afterwards.
    let error = std::thread::spawn(|| {
        drop_capabilities();
        balancer().err()
    })
    .join()
    .unwrap();
    let Some(error @ DatapathError::MapCreate { .. }) = error else {
        panic!("{error:?}");
    };
    let text = error.to_string();
    assert!(
        text.starts_with("BPF_MAP_CREATE of ") && text.ends_with("run as root or with CAP_BPF"),
        "{text}"
    );
    Ok(())
}

fn drop_capabilities() {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let none = [[0_u32; 3]; 2];
    // SAFETY: capset(2) reads one header and, in version 3, two sets of three words.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
