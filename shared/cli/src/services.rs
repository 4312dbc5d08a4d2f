//! Registration of services.

use anyhow::Context;
use store::registry;
use topology::Service;
use trust::Scope;

/// Registers services with scopes, and returns the names of those that remain disabled.
///
/// # Errors
/// If a scope or name is invalid, or the database rejects the change.
pub async fn register(
    connection: &mut store::Connection,
    services: Vec<Service>,
) -> anyhow::Result<Vec<String>> {
    let mut disabled = Vec::new();
    // A service without scopes only subscribes to events, which the broker's permissions allow.
    for Service { service, scopes, .. } in services.into_iter().filter(|one| !one.scopes.is_empty()) {
        let scopes: Vec<Scope> = scopes.iter().map(|scope| scope.parse()).collect::<Result<_, _>>()?;
        let name = service.parse().with_context(|| format!("invalid service name {service:?}"))?;
        if !registry::load_service(connection, &name, &scopes).await? {
            disabled.push(service);
        }
    }
    Ok(disabled)
}
