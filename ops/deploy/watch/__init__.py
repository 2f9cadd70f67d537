"""Alert rules and their tests, for Prometheus, and the dashboard for Grafana."""
