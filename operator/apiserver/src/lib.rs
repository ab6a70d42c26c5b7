//! A double of the Kubernetes API server.
