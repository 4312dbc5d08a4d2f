use std::collections::BTreeSet;
use std::path::Path;

use contract::WorkerInfo;
use serde::Deserialize;
use trust::Scope;

use crate::TopologyError;
use crate::invalid;
use crate::permission::{MONITOR, OPERATOR};

/// A service that publishes requests and queries, or subscribes to events, as `nats/services.json` describes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Its name: a token of its subjects and of its inbox.
    pub service: String,
    /// Its purpose.
    pub description: String,
    /// The requests and queries that it may publish, as `noun:verb` or `noun:*`.
    pub scopes: Vec<String>,
    /// The users whose events it subscribes to: their ids, or `*` for all users. An entry with `hears` has no scopes:
    /// subscribing and publishing require separate identities.
    #[serde(default)]
    pub hears: Vec<String>,
}

const FILE: &str = "nats/services.json";
const SHIPPED: &str = include_str!("../../../nats/services.json");

impl Service {
    /// An identity that subscribes to the events of one user, such as a web page of that user, and may do nothing else.
    pub fn listener(user: contract::UserId) -> Self {
        let description = format!("Subscribes to the events of user {user}.");
        Self {
            service: format!("live-{user}"),
            description,
            scopes: Vec::new(),
            hears: vec![user.to_string()],
        }
    }

    /// The services in `nats/services.json` at build time.
    ///
    /// # Errors
    /// [`TopologyError::Invalid`] if it cannot be read; a test rules it out.
    pub fn shipped() -> Result<Vec<Self>, TopologyError> {
        Self::parse(FILE, SHIPPED)
    }

    /// Reads a file of the same format as `nats/services.json`.
    ///
    /// # Errors
    /// [`TopologyError::Unreadable`] or [`TopologyError::Invalid`].
    pub fn read(path: &Path) -> Result<Vec<Self>, TopologyError> {
        let text = std::fs::read_to_string(path).map_err(|error| TopologyError::Unreadable {
            path: path.display().to_string(),
            problem: error.to_string(),
        })?;
        Self::parse(&path.display().to_string(), &text)
    }

    fn parse(file: &str, text: &str) -> Result<Vec<Self>, TopologyError> {
        let services: Vec<Self> =
            serde_json::from_str(text).map_err(|error| invalid(file, error.to_string()))?;
        let mut known = BTreeSet::new();
        for service in &services {
            service.check().map_err(|problem| invalid(file, problem))?;
            if !known.insert(&service.service) {
                return Err(invalid(file, format!("duplicate service {}", service.service)));
            }
        }
        Ok(services)
    }

    /// Checks that its name, scopes and users can be parts of subjects and of the server's configuration, and that its
    /// name is not that of another identity.
    fn check(&self) -> Result<(), String> {
        let name = &self.service;
        if name.parse::<contract::Service>().is_err() {
            return Err(format!("{name:?} is not a valid service name: 1 to 64 of a-z 0-9 -"));
        }
        if [OPERATOR, MONITOR].contains(&name.as_str()) || WorkerInfo::find(name).is_some() {
            return Err(format!("a service cannot be named {name}: the name is reserved"));
        }
        if let Some(scope) = self.scopes.iter().find(|scope| scope.parse::<Scope>().is_err()) {
            return Err(format!("{name}: {scope:?} is not a scope; a scope is noun:verb, noun:* or *:*"));
        }
        if !self.hears.is_empty() && !self.scopes.is_empty() {
            return Err(format!(
                "{name}: an entry with `hears` has no scopes; add a separate entry that subscribes to events"
            ));
        }
        match self.hears.iter().find(|user| *user != "*" && user.parse::<contract::UserId>().is_err()) {
            Some(user) => Err(format!("{name}: `hears` lists user numbers or *, not {user:?}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn parse(name: &str, scope: &str) -> Result<Vec<Service>, String> {
        let service = serde_json::json!({ "service": name, "description": "", "scopes": [scope] });
        Service::parse("file", &serde_json::json!([service]).to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn entries_that_are_unsafe_in_subjects_or_the_configuration_are_rejected() {
        assert_eq!(parse("chat", "context:*").unwrap().len(), 1);
        for name in [
            "*",
            ">",
            "a.b",
            "",
            "A",
            "a b",
            "a\"\n}",
            "../x",
            "operator",
            "monitor",
            "token-issuer",
            "memory-reader",
            "context-writer",
        ] {
            assert!(parse(name, "context:*").unwrap_err().starts_with("file: "), "{name:?}");
        }
        for scope in ["context", "context:>", "*:put", "context.put:*", "a:b\""] {
            assert!(parse("chat", scope).unwrap_err().contains("a scope is noun:verb"), "{scope:?}");
        }
        let hears = |user: &str| {
            let service =
                serde_json::json!({ "service": "chat", "description": "", "scopes": [], "hears": [user] });
            Service::parse("file", &serde_json::json!([service]).to_string())
        };
        assert!(hears("*").is_ok() && hears("42").is_ok());
        let both = r#"[{"service":"a","description":"","scopes":["context:put"],"hears":["1"]}]"#;
        assert!(Service::parse("file", both).unwrap_err().to_string().contains("has no scopes"));
        for user in ["", ">", "4.2", "-1", "a"] {
            assert!(hears(user).unwrap_err().to_string().contains("user numbers or *"), "{user:?}");
        }
        let twice =
            r#"[{"service":"a","description":"","scopes":[]},{"service":"a","description":"","scopes":[]}]"#;
        assert!(Service::parse("file", twice).unwrap_err().to_string().contains("duplicate service a"));
        assert!(!Service::shipped().unwrap().is_empty());
    }
}
