//! Services in the registry.

use anyhow::Context;
use store::registry;
use topology::Service;
use trust::Scope;

/// Registers services as a file describes them, and returns the names of those that are disabled and stay so.
///
/// # Errors
/// If a scope is invalid, or the database refuses.
pub async fn register(
    connection: &mut store::Connection,
    services: Vec<Service>,
) -> anyhow::Result<Vec<String>> {
    let mut disabled = Vec::new();
    // A service without scopes only subscribes to events, which the broker's permissions allow.
    for Service { service, scopes, .. } in services.into_iter().filter(|one| !one.scopes.is_empty()) {
        let scopes: Vec<Scope> = scopes.iter().map(|scope| scope.parse()).collect::<Result<_, _>>()?;
        let name = service.parse().with_context(|| format!("the service {service:?}"))?;
        if !registry::load_service(connection, &name, &scopes).await? {
            disabled.push(service);
        }
    }
    Ok(disabled)
}
