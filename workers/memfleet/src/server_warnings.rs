//! What the server lets workers' roles do beside the database, and migrations do not change: other databases are not theirs.

use anyhow::Context;
use cli::errln;
use cli::output::printable;
use store::Connection;
use store::server::{self, UnlimitedRole};

/// A warning for each other database to which workers' roles may connect because every role may.
///
/// # Errors
/// If the catalogs cannot be read.
pub(crate) async fn open_databases(connection: &mut Connection) -> anyhow::Result<Vec<String>> {
    let names = server::open_databases(connection).await.context("cannot read which databases are open")?;
    let warning = |name: String| {
        let quoted = name.replace('"', "\"\"");
        format!(
            "every role may connect to the database {name}, also those of workers; revoke it (REVOKE CONNECT, TEMPORARY ON \
             DATABASE \"{quoted}\" FROM PUBLIC), or refuse the roles w_* there in pg_hba.conf"
        )
    };
    Ok(names.into_iter().map(warning).collect())
}

/// A warning for each superuser, extension and library that can change what is judged here.
///
/// # Errors
/// If the catalogs cannot be read.
pub(crate) async fn powers(connection: &mut Connection) -> anyhow::Result<Vec<String>> {
    let found = server::powers(connection).await.context("cannot read who can change anything")?;
    Ok(found.into_iter().map(|what| format!("{what}, and can change whatever is judged here")).collect())
}

fn unlimited(role: &UnlimitedRole) -> String {
    let UnlimitedRole { role, limit: _, connections } = role;
    format!(
        "the role {role} may open all {connections} connections of the server; limit it (ALTER ROLE {role} CONNECTION LIMIT \
         COUNT)"
    )
}

/// Prints what an operator should do on the server. That it cannot be read is a warning as well: the migrations are applied.
pub(crate) async fn print(connection: &mut Connection) {
    let warnings = async {
        let mut warnings: Vec<String> =
            server::unlimited_roles(connection).await?.iter().map(unlimited).collect();
        warnings.extend(open_databases(connection).await?);
        anyhow::Ok(warnings)
    };
    match warnings.await {
        Ok(warnings) => warnings.iter().for_each(|warning| errln!("warning: {}", printable(warning))),
        Err(error) => errln!("warning: cannot tell what workers' roles may do on the server: {error:#}"),
    }
}
