"""What single methods or families of them are made of; the files beside this folder hold the methods themselves."""
