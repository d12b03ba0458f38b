//! Where servers are, and how they are used: values that options make and connections are made of.

use std::fmt;

/// A server that keeps a part of the channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// One address.
    Single {
        /// Where.
        address: Address,
        /// How.
        access: Access,
    },
    /// The master that Sentinels name.
    Sentinel {
        /// The Sentinels.
        sentinels: Vec<Address>,
        /// The name of the master.
        master: String,
        /// To the Sentinels.
        sentinel_access: Access,
        /// To the master.
        access: Access,
    },
    /// A Cluster.
    Cluster {
        /// Some of its nodes, at least one.
        seeds: Vec<Address>,
        /// To each of them.
        access: Access,
    },
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// Host and port.
    Tcp(String, u16),
    /// The path of a socket.
    Unix(String),
}

/// How a server is used.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Empty: the default user.
    pub user: String,
    /// Empty: none.
    pub password: String,
    /// The number of the database; PUB/SUB knows none.
    pub db: i64,
    /// RESP2 instead of RESP3.
    pub force_resp2: bool,
    /// The name that the server shows for the connection; empty: none.
    pub client_name: String,
    /// TLS, or none.
    pub security: Option<Security>,
}

/// TLS to a server.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Security {
    /// Certificates that sign the server's, in PEM; none: those of the machine.
    pub authorities: Option<Vec<u8>>,
    /// Certificate and key of this node, in PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Accept any name and certificate.
    pub insecure: bool,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = |f: &mut fmt::Formatter<'_>, addresses: &[Address]| {
            let texts: Vec<String> = addresses.iter().map(Address::to_string).collect();
            f.write_str(&texts.join(", "))
        };
        match self {
            Self::Single { address, .. } => address.fmt(f),
            Self::Sentinel { sentinels, master, .. } => {
                write!(f, "master {master} of the Sentinels ")?;
                all(f, sentinels)
            }
            Self::Cluster { seeds, .. } => {
                f.write_str("Cluster of ")?;
                all(f, seeds)
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => f.write_str(path),
        }
    }
}

// Passwords and keys are in no log.
impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, db, force_resp2, client_name, security, password } = self;
        f.debug_struct("Access")
            .field("user", user)
            .field("has_password", &!password.is_empty())
            .field("db", db)
            .field("force_resp2", force_resp2)
            .field("client_name", client_name)
            .field("security", security)
            .finish()
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security")
            .field("has_authorities", &self.authorities.is_some())
            .field("has_identity", &self.identity.is_some())
            .field("insecure", &self.insecure)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_by_their_addresses() {
        let addresses = || vec![Address::Tcp("a".into(), 1), Address::Unix("/s".into())];
        let cluster = Server::Cluster { seeds: addresses(), access: Access::default() };
        assert_eq!(cluster.to_string(), "Cluster of a:1, /s");
        let (access, sentinel_access) = (Access::default(), Access::default());
        let (sentinels, master) = (addresses(), "m".into());
        let sentinel = Server::Sentinel { sentinels, master, sentinel_access, access };
        assert_eq!(sentinel.to_string(), "master m of the Sentinels a:1, /s");
    }

    #[test]
    fn secrets_are_not_shown() {
        let security =
            Security { identity: Some((b"cert".into(), b"secret".into())), ..Security::default() };
        let access =
            Access { password: "secret".into(), security: Some(security), ..Access::default() };
        let shown = format!("{access:?}");
        assert!(!shown.contains("secret") && shown.contains("has_password: true"), "{shown}");
        assert!(!shown.contains("115, 101"), "{shown}");
    }
}
