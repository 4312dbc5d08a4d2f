//! Comparison of database URLs.

use std::net::IpAddr;

use contract::take_password_file;
use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// Whether two URLs name the same database, regardless of the user: of URLs with several hosts, if one host is in both.
/// An invalid URL names none.
pub(crate) fn same_database(one: &str, other: &str) -> bool {
    let (Some((servers, database)), Some((others, other))) = (location(one), location(other)) else {
        return false;
    };
    database == other && servers.iter().any(|server| others.contains(server))
}

/// A host, its address, and its port.
type Server = (Option<Host>, Option<IpAddr>, u16);

/// The servers of a URL, and the name of its database.
fn location(url: &str) -> Option<(Vec<Server>, Option<String>)> {
    let (url, _) = take_password_file(url);
    let config: Config = url.parse().ok()?;
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let server = |place: usize| {
        let port = ports.get(place).or_else(|| ports.first()).copied().unwrap_or(5432);
        (hosts.get(place).cloned(), addresses.get(place).copied(), port)
    };
    let servers = (0..hosts.len().max(addresses.len()).max(1)).map(server).collect();
    Some((servers, config.get_dbname().or(config.get_user()).map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_urls_can_name_the_same_database() {
        let main = "postgres://h/d";
        let same = [
            main,
            "postgres://u:p@h:5432/d",
            "postgres://h/d?application_name=x",
            "host=h dbname=d",
            "postgres://g,h/d",
            "postgres://u@h/d?password_file=/p",
        ];
        for other in same {
            assert!(same_database(main, other), "{other}");
        }
        for other in
            ["postgres://h/e", "postgres://g/d", "postgres://h:5433/d", "postgres://g,h:5433/d", "nonsense"]
        {
            assert!(!same_database(main, other), "{other}");
        }
    }
}
