"""The same work done by other libraries; each file says which, and needs what its library needs."""
