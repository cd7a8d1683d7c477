"""What is asked: tasks, their pairs, and the files of every form that they are read from."""
