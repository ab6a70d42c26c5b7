//! Backends that die after they have departed: a deadline has come, or they are gone.

use lb_core::desired::BackendId;
use xdp_prog::abi::BackendIndex;

use super::{Dice, World};

impl World {
    /// One who has departed dies.
    pub(super) fn bury(&mut self, dice: &mut Dice) {
        let departed = self.planner.backends().filter(|backend| {
            let comes_back = self.desired.backends.contains_key(backend.id);
            backend.has_departed && !comes_back && !self.dead.contains(backend.id)
        });
        let departed: Vec<(BackendId, u16)> = departed.map(|backend| (backend.id.clone(), backend.index.0)).collect();
        if let Some((id, index)) = departed.get(dice.below(departed.len().max(1))) {
            self.dead.insert(id.clone());
            self.dead_at.insert(*index);
        }
    }

    /// Whether nothing lives at a position, because who has or had it died after departing.
    pub(super) fn was_buried(&self, backend: u16) -> bool {
        match self.planner.backend_at(BackendIndex(backend)) {
            Some(id) => self.dead.contains(id),
            None => self.dead_at.contains(&backend),
        }
    }
}
