//! Roles.

use crate::failure::Failure;
use crate::identity::Identity;
use crate::paths::Target;
use crate::resource::Resource;
use crate::store::State;

pub(crate) fn authorize(
    _state: &State,
    user: &Identity,
    verb: &str,
    resource: &Resource,
    target: &Target,
) -> Result<(), Failure> {
    if user.is_master() {
        return Ok(());
    }
    let why = format!(
        "User \"{}\" cannot {verb} resource \"{}\"",
        user.username, resource.plural
    );
    Err(Failure::forbidden(&resource.group, &resource.plural, &target.name, why))
}
