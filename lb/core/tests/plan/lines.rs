//! Backend lines: the order in which their words change.

use lb_core::{
    desired::NextHops,
    plan::{MapId, Write},
};

use crate::world::{address, desired, id, key, planner, resolved, set};

#[test]
fn a_backend_that_gets_an_address_without_a_next_hop_is_out_of_use_before_its_line_names_it() {
    let mut planner = planner(1);
    let before = desired(&[(key("203.0.113.1", 80), &set(&[("a", 1)]))]);
    planner.plan(&before, &resolved(&before)).unwrap();
    let index = u32::from(planner.backend_index(&id("a")).unwrap().0);
    let mut after = before.clone();
    after.backends.get_mut(&id("a")).unwrap().address = address("192.0.2.77");
    let writes = planner.plan(&after, &NextHops::new()).unwrap().writes;
    let unused = Write::Store {
        map: MapId::Backends,
        index,
        word: 0,
        value: 0,
    };
    assert_eq!(writes[..2], [unused, Write::Grace]);
    let named = |write: &Write| {
        matches!(
            write,
            Write::Store {
                map: MapId::Backends,
                word: 3..,
                ..
            }
        )
    };
    assert!(writes[2..].iter().any(named), "{writes:?}");
    // Where the address stays, one store says it.
    let mut other = crate::world::planner(1);
    other.plan(&before, &resolved(&before)).unwrap();
    assert_eq!(other.plan(&before, &NextHops::new()).unwrap().writes.len(), 1);
}
