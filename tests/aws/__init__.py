"""AWS, as moto's server plays it."""
