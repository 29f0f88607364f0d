"""Files for a site to review and put into place: `clustertools setup` prints them, and installs nothing."""
