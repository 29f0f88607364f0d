"""The responses: one YAML file per kind of incident, read by `clustertools.policy`."""
