//! Comparison of database URLs.

use tokio_postgres::Config;

/// Whether two URLs name the same database, regardless of the user. An invalid URL names none.
pub(crate) fn same_database(one: &str, other: &str) -> bool {
    let location = |url: &str| {
        let config: Config = url.parse().ok()?;
        let ports = if config.get_ports().is_empty() { vec![5432] } else { config.get_ports().to_vec() };
        let database = config.get_dbname().or(config.get_user()).map(str::to_owned);
        Some((config.get_hosts().to_vec(), config.get_hostaddrs().to_vec(), ports, database))
    };
    location(one).is_some_and(|one| location(other) == Some(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_urls_can_name_the_same_database() {
        let main = "postgres://h/d";
        for other in [main, "postgres://u:p@h:5432/d", "postgres://h/d?application_name=x", "host=h dbname=d"]
        {
            assert!(same_database(main, other), "{other}");
        }
        for other in ["postgres://h/e", "postgres://g/d", "postgres://h:5433/d", "nonsense"] {
            assert!(!same_database(main, other), "{other}");
        }
    }
}
