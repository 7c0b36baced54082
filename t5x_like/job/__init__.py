"""The processes of one job: how they find one another, agree, stop together, and notice one that is lost or stuck."""
