# Chores. The product is `ansible-playbook`, which these targets never hide.
SHELL := /bin/sh
.SHELLFLAGS := -eu -c
.DEFAULT_GOAL := help

# Everything runs from the control environment, whoever activated what.
VENV := $(CURDIR)/.venv
export PATH := $(VENV)/bin:$(PATH)
export VIRTUAL_ENV := $(VENV)
unexport PYTHONHOME

# The lab boots machines: that takes root.
ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo --preserve-env=LAB_NAME,LAB_SUBNET,LAB_RELEASE,LAB_DATABASE,PROD_HOSTS,http_proxy,https_proxy,no_proxy)

export PROD_HOSTS ?= 1
export LAB_RELEASE ?= trixie

.PHONY: help setup up down status secrets check pipeline-check new-app image ssh-config tunnel db lint quick test bench

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## Make the control environment in .venv
	@scripts/bootstrap

up: setup ## Boot the lab and converge dev and prod (PROD_HOSTS=2, LAB_RELEASE=bookworm)
	@$(VENV)/bin/python scripts/up

down: setup ## Remove the lab
	@$(ROOT) $(VENV)/bin/python -m lab down

status: setup ## Show the lab's hosts
	@$(ROOT) $(VENV)/bin/python -m lab status

secrets: setup ## Write an environment's vault with generated secrets (ENV=dev)
	@$(VENV)/bin/python scripts/make-secrets "$(ENV)"

check: setup ## Check values, secrets and settings, without hosts (ENV=prod; both without it)
	@ansible-playbook playbooks/preflight.yml $(if $(ENV),-l "$(ENV)",-e all_environments=true)

ssh-config: setup ## Write an alias for each host, to include in ~/.ssh/config
	@$(VENV)/bin/python scripts/reach ssh-config

tunnel: setup ## Hold a local port to an environment's database open (ENV=dev, PORT=3307)
	@$(VENV)/bin/python scripts/reach tunnel "$(ENV)" "$(PORT)"

db: setup ## Open a mysql console of an environment; prod's only reads (ENV=dev, WRITE=yes)
	@$(VENV)/bin/python scripts/reach db "$(ENV)" "$(WRITE)"

pipeline-check: setup ## List what the workflows still need on GitHub (docs/pipeline.md)
	@$(VENV)/bin/python scripts/pipeline-check

new-app: setup ## Set this clone up for your application (NAME=shop, REPOSITORY=https://...)
	@$(VENV)/bin/python scripts/new-app "$(NAME)" "$(REPOSITORY)"

image: setup ## Build the application's image from the artefact, with podman or docker
	@$(VENV)/bin/python scripts/image

lint: setup ## Check the house rules
	@scripts/lint

quick: lint ## Lint, and the tests without hosts
	@$(VENV)/bin/python -m pytest -q -n auto --dist loadfile -m "not lab and not aws"

test: setup ## Lint and tests, on lab hosts of their own; with LONG=yes those that take long, too
	@scripts/test

bench: setup ## Measure; writes docs/benchmarks.md
	@$(VENV)/bin/python -c 'import matplotlib' 2>/dev/null || scripts/bootstrap bench
	@$(ROOT) $(VENV)/bin/python -m tests.bench
