"""What an application is, from the files of its artefact: nothing of it is imported or run."""
