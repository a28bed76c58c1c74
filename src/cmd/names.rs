//! What members are called in DNS, for commands that run outside of a pod of theirs.

use clap::Args;

use crate::config::InvalidSetting;
use crate::config::limits::{check_domain, check_label};
use crate::core::member::{Ordinal, Topology};

#[derive(Args, Debug)]
pub struct Names {
    /// Namespace of the members
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Headless Service of the members [default: the cluster's name]
    #[arg(long, env = "PODGRES_SERVICE")]
    pub service: Option<String>,
    /// DNS domain of the Kubernetes cluster
    #[arg(long, env = "PODGRES_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
}

impl Names {
    /// # Errors
    /// A name that DNS does not take: nobody would ever be found.
    pub(super) fn check(&self) -> Result<(), InvalidSetting> {
        check_label("POD_NAMESPACE", &self.namespace)?;
        if let Some(service) = &self.service {
            check_label("PODGRES_SERVICE", service)?;
        }
        check_domain("PODGRES_CLUSTER_DOMAIN", &self.cluster_domain)
    }

    pub(super) fn topology(&self, cluster: &str, first_ordinal: Ordinal) -> Topology {
        Topology {
            cluster: cluster.to_owned(),
            service: self.service.clone().unwrap_or_else(|| cluster.to_owned()),
            namespace: self.namespace.clone(),
            cluster_domain: self.cluster_domain.clone(),
            first_ordinal,
        }
    }
}
