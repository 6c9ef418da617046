//! CertificateSigningRequests of kubelets: which are approved without a human, and the certificates that follow.

pub(crate) mod controller;
pub(crate) mod request;
pub(crate) mod sign;

#[cfg(test)]
mod tests;
